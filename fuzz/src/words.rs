//! Everything that a person types as one word: names, ids, sizes, durations, mounts, paths.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use pinfold_image::ImageRef;
use pinfold_types::api::{format_time_ms, parse_time_ms};
use pinfold_types::exec::{decode_output, encode_output};
use pinfold_types::id::looks_like_id;
use pinfold_types::name::NAME_LENGTH_MAX;
use pinfold_types::spec::{
    DeadlineAction, Language, MountSpec, check_guest_path, parse_duration_ms,
};
use pinfold_types::units::parse_duration;
use pinfold_types::{ByteSize, ExecId, MilliCpu, SandboxId, SandboxName, SandboxState};

/// Most characters of a refusal: it repeats at most a part of what it refuses.
const REFUSAL_CHARACTERS_MAX: usize = 600;

/// What is accepted is plain, bounded and survives being printed; a refusal is short.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    names(&text);
    quantities(&text);
    mounts(&text);
    if let Some(language) = parsed::<Language>(&text) {
        assert_eq!(language.as_str().parse(), Ok(language));
    }
    if let Some(action) = parsed::<DeadlineAction>(&text) {
        assert_eq!(
            serde_json::to_value(action).ok(),
            Some(text.as_ref().into())
        );
    }
    if let Some(state) = parsed::<SandboxState>(&text) {
        assert_eq!(state.to_string(), text);
    }
    if let Some(time) = parse_time_ms(&text) {
        let again = parse_time_ms(&format_time_ms(time));
        assert_eq!(again, Some(time), "{text:?}");
    }
    if let Some(bytes) = decode_output(&text, Some("base64")) {
        let (text, encoding) = encode_output(&bytes);
        assert_eq!(decode_output(&text, encoding.as_deref()), Some(bytes));
    }
    if let Err(error) = ImageRef::parse(&text) {
        assert!(error.to_string().chars().count() <= text.chars().count() + 120);
    }
}

/// Reads a text; a refusal is short whatever the text was.
fn parsed<T>(text: &str) -> Option<T>
where
    T: FromStr<Err: Display> + Debug,
{
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            let refusal = error.to_string();
            assert!(
                refusal.chars().count() <= REFUSAL_CHARACTERS_MAX,
                "{refusal}"
            );
            None
        }
    }
}

fn names(text: &str) {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if let Some(name) = parsed::<SandboxName>(text) {
        assert_eq!(name.as_str(), text);
        assert!(text.bytes().all(plain) && text.len() <= NAME_LENGTH_MAX);
        assert!(!looks_like_id(text));
        if let Ok(numbered) = name.numbered(7) {
            assert_eq!(numbered.as_str().parse().as_ref(), Ok(&numbered));
        }
    }
    let generated = SandboxName::generate(text);
    assert_eq!(generated.as_str().parse().as_ref(), Ok(&generated));
    let sandbox = parsed::<SandboxId>(text);
    assert_eq!(sandbox.is_some(), looks_like_id(text));
    if let Some(id) = sandbox {
        assert_eq!(id.to_string(), text);
        assert!(text.bytes().all(plain));
        assert!(text.parse::<SandboxName>().is_err(), "an id that is a name");
    }
    assert_eq!(parsed::<ExecId>(text).is_some(), looks_like_id(text));
}

fn quantities(text: &str) {
    if let Some(size) = parsed::<ByteSize>(text) {
        let shown = size.to_string();
        let read: ByteSize = shown.parse().unwrap_or_else(|error| panic!("{error}"));
        // A tenth of a unit is the last digit that is shown.
        let off = size.0.checked_sub(read.0);
        assert!(
            off.is_some_and(|off| off <= size.0 / 10),
            "{text:?} is {} and shown as {shown}, which is {}",
            size.0,
            read.0
        );
    }
    if let Some(cpus) = parsed::<MilliCpu>(text) {
        assert!(cpus.0 >= 10);
        assert_eq!(cpus.to_string().parse(), Ok(cpus), "{text:?}");
    }
    if let Ok(duration) = parse_duration(text) {
        let milliseconds = duration.as_millis();
        assert_eq!(
            parse_duration_ms(text).map(u128::from),
            Ok(milliseconds),
            "{text:?}"
        );
        if let Ok(seconds) = text.trim().parse::<u64>() {
            assert_eq!(duration.as_secs(), seconds, "a number is seconds");
        }
        let again = parse_duration(&format!("{milliseconds}ms"));
        assert_eq!(again, Ok(duration), "{text:?}");
    }
}

fn mounts(text: &str) {
    if check_guest_path(text).is_ok() {
        assert!(text.starts_with('/') && text.len() <= 4095);
        assert!(!text.contains('\0') && !text.split('/').any(|part| part == ".."));
    }
    let Some(mount) = parsed::<MountSpec>(text) else {
        return;
    };
    assert_eq!(check_guest_path(&mount.target), Ok(()));
    assert!(!mount.source.is_empty() && !mount.source.contains(':'));
    let mode = if mount.writable { "rw" } else { "ro" };
    let again = format!("{}:{}:{mode}", mount.source, mount.target);
    assert_eq!(again.parse().as_ref(), Ok(&mount));
}

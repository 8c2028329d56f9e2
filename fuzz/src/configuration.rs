//! The configuration file and the variables.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;

use pinfold::fuzzing::{check_setting, setting_names, settings};

use crate::input::Input;
use crate::place::Place;

/// Most characters of a refusal.
const REFUSAL_CHARACTERS_MAX: usize = 2000;

/// Every value that is taken is of its kind, and what was taken can be written down and read again.
pub fn run(data: &[u8]) {
    let place = Place::new();
    let mut input = Input::new(data);
    let file = place.inside().join("config.yaml");
    fs::write(&file, input.until(0)).expect("the directory is writable");
    let mut variables = vec![(OsString::from("HOME"), OsString::from("/home/fuzz"))];
    while !input.is_empty() {
        let mut line = Input::new(input.until(b'\n'));
        let name = OsString::from_vec(line.until(b'=').to_vec());
        // No environment has a zero byte.
        variables.push((name, OsString::from_vec(line.until(0).to_vec())));
    }
    let taken = match settings(Some(file.clone()), variables) {
        Ok(taken) => taken,
        Err(refusal) => {
            assert!(refusal.chars().count() <= REFUSAL_CHARACTERS_MAX);
            return;
        }
    };
    let mut text = String::new();
    for (key, value) in &taken {
        assert_eq!(check_setting(key, value), Ok(()), "{key}");
        assert!(setting_names().any(|(known, _)| known == *key));
        writeln!(text, "{key}: {}", quoted(value)).expect("memory takes all");
    }
    fs::write(&file, &text).expect("the directory is writable");
    let home = vec![(OsString::from("HOME"), OsString::from("/home/fuzz"))];
    let again = settings(Some(file), home);
    assert_eq!(again.as_ref(), Ok(&taken), "{text}");
}

/// Writes a value so that YAML has it as it is; it takes no control character unescaped.
fn quoted(value: &str) -> String {
    let mut text = String::from('"');
    for character in value.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            ' '..='~' => text.push(character),
            other => {
                write!(text, "\\U{:08x}", u32::from(other)).expect("memory takes all");
            }
        }
    }
    text.push('"');
    text
}

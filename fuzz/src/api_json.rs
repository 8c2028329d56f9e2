//! The API's JSON: every type that a caller sends, and those that come back.

use std::fmt::Debug;

use pinfold_types::api::{
    CreateLine, CreateSandboxRequest, DoctorReport, Exec, ExecList, ExecRequest, ExecResult,
    FileInfo, FileList, Health, MakeDirectoryRequest, RenameRequest, SandboxList, SignalRequest,
    StopRequest, Version,
};
use pinfold_types::spec::check_environment;
use pinfold_types::{ApiErrorBody, ExecExit, ExecSpec, MountSpec, Resources, SandboxSpec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::input::Input;

/// Most characters of a refusal: serde repeats at most one word of what it refuses.
const REFUSAL_GROWTH_MAX: usize = 4096;

/// What is read is written and read again without change; checks decide.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let text = input.rest();
    match choice % 20 {
        0 => {
            if let Some(request) = round_trip::<CreateSandboxRequest>(text) {
                check(&request.spec);
            }
        }
        1 => {
            if let Some(spec) = round_trip::<SandboxSpec>(text) {
                check(&spec);
            }
        }
        2 => {
            if let Some(request) = round_trip::<ExecRequest>(text) {
                drop(ExecSpec::from(request).check());
            }
        }
        3 => {
            if let Some(spec) = round_trip::<ExecSpec>(text) {
                drop(spec.check());
            }
        }
        4 => drop(round_trip::<StopRequest>(text)),
        5 => drop(round_trip::<SignalRequest>(text)),
        6 => drop(round_trip::<MakeDirectoryRequest>(text)),
        7 => drop(round_trip::<RenameRequest>(text)),
        8 => drop(round_trip::<MountSpec>(text)),
        9 => drop(round_trip::<Resources>(text).map(|resources| resources.check())),
        10 => drop(round_trip::<SandboxList>(text)),
        11 => drop(round_trip::<Exec>(text)),
        12 => drop(round_trip::<ExecList>(text)),
        13 => drop(round_trip::<ExecResult>(text)),
        14 => drop(round_trip::<FileList>(text)),
        15 => drop(round_trip::<FileInfo>(text)),
        16 => drop(round_trip::<ApiErrorBody>(text)),
        17 => drop(round_trip::<ExecExit>(text)),
        18 => drop(round_trip::<CreateLine>(text)),
        _ => {
            drop(round_trip::<DoctorReport>(text));
            drop(round_trip::<Version>(text));
            drop(round_trip::<Health>(text));
        }
    }
}

fn round_trip<T>(text: &[u8]) -> Option<T>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let value: T = match serde_json::from_slice(text) {
        Ok(value) => value,
        Err(error) => {
            assert!(error.to_string().len() <= text.len() * 3 + REFUSAL_GROWTH_MAX);
            return None;
        }
    };
    let again = serde_json::to_vec(&value).expect("what was read can be written");
    let read: T = serde_json::from_slice(&again).expect("what was written can be read");
    assert_eq!(read, value);
    Some(value)
}

/// What passes the check is what later steps rely on.
fn check(spec: &SandboxSpec) {
    if spec.check().is_err() {
        return;
    }
    assert_eq!(check_environment(&spec.env), Ok(()));
    for mount in &spec.mounts {
        assert!(mount.source.starts_with('/') && mount.target.starts_with('/'));
        assert!(!mount.source.contains('\0') && !mount.target.contains('\0'));
        assert!(!mount.target.split('/').any(|part| part == ".."));
    }
    assert_eq!(spec.resources.check(), Ok(()));
}

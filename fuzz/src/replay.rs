//! Gives every target what is in its corpus: what was found stays mended.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::{
    agent_answers, agent_requests, agent_unpack, api_json, api_requests, configuration,
    copy_unpack, frames, image_unpack, journal, launcher_plans, paths, words,
};

/// As when fuzzing.
#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = crate::allocator();

/// The allocator's limit is for one target at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Gives a target its corpus and what an engine always begins with: nothing.
fn replay(target: &str, run: fn(&[u8])) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    crate::run(run, &[], &ALLOCATOR);
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let input = fs::read(entry.unwrap().path()).unwrap();
        crate::run(run, &input, &ALLOCATOR);
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", corpus.display());
}

macro_rules! replayed {
    ($($target:ident,)*) => {$(
        #[test]
        fn $target() {
            replay(stringify!($target), $target::run);
        }
    )*

    /// Every target has its program, its test and its corpus, and there are no others.
    #[test]
    fn targets_are_the_same_everywhere() {
        let listed = |directory: &str| {
            let mut names: Vec<String> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .map(|name| name.trim_end_matches(".rs").to_owned())
                .collect();
            names.sort();
            names
        };
        let tested = [$(stringify!($target)),*];
        assert_eq!(listed("targets"), tested);
        assert_eq!(listed("corpus"), tested);
    }};
}

replayed! {
    agent_answers,
    agent_requests,
    agent_unpack,
    api_json,
    api_requests,
    configuration,
    copy_unpack,
    frames,
    image_unpack,
    journal,
    launcher_plans,
    paths,
    words,
}

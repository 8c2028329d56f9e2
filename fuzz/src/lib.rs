//! Fuzz targets for everything that reads hostile input, and the replay of their corpora.
//!
//! Each module has one function `run`, which takes any bytes, gives them to the product's own code
//! and asserts what must be true of the result. The programs in `targets/` give it to the fuzzing
//! engine; the tests of this crate give it what is in `corpus/`. It is a crate of its own because
//! it uses every other and no product may use it.

#![expect(
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a broken promise ends a target; that is what it is for"
)]

#[cfg(test)]
mod replay;

pub mod agent_answers;
pub mod agent_requests;
pub mod agent_unpack;
pub mod api_json;
pub mod api_requests;
pub mod configuration;
pub mod copy_unpack;
pub mod frames;
pub mod image_unpack;
pub mod journal;
pub mod launcher_plans;
pub mod paths;
pub mod words;

mod archive;
mod input;
mod place;

use std::alloc::System;

use cap::Cap;

/// Most bytes that are allocated at once while a target runs.
///
/// The largest single thing that any of the parsers may rightly hold is a message of 4 MiB; decoded
/// beside what it was decoded from, with room for the runtime.
pub const ALLOCATED_BYTES_MAX: usize = 48 << 20;

/// Bytes after which allocations fail, before the machine is the worse for it.
const ALLOCATED_BYTES_END: usize = 16 * ALLOCATED_BYTES_MAX;

/// Returns an allocator that knows how much was allocated at once.
pub const fn allocator() -> Cap<System> {
    Cap::new(System, ALLOCATED_BYTES_END)
}

/// Gives a target an input, and asserts that it did not allocate more than it may.
///
/// A failed allocation would not show it: what reads a stream to its end makes an error of it.
pub fn run(target: fn(&[u8]), input: &[u8], allocator: &Cap<System>) {
    target(input);
    let most = allocator.max_allocated();
    assert!(
        most <= ALLOCATED_BYTES_MAX,
        "{most} bytes were allocated at once"
    );
}

/// Makes a fuzz target's program: the engine's when fuzzing, else one that does nothing.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        #[global_allocator]
        static ALLOCATOR: cap::Cap<std::alloc::System> = $crate::allocator();

        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::run(
            $crate::$name::run,
            data,
            &ALLOCATOR
        ));

        #[cfg(not(fuzzing))]
        fn main() {}
    };
}

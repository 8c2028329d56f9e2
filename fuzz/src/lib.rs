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

/// Most bytes that are allocated at once while a target runs; one more ends the process.
///
/// The largest single thing that any of the parsers may rightly hold is a message of 4 MiB; decoded
/// beside what it was decoded from, with room for the runtime.
pub const ALLOCATED_BYTES_MAX: usize = 48 << 20;

/// Makes a fuzz target's program: the engine's when fuzzing, else one that does nothing.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        #[global_allocator]
        static ALLOCATOR: cap::Cap<std::alloc::System> =
            cap::Cap::new(std::alloc::System, $crate::ALLOCATED_BYTES_MAX);

        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$name::run(data));

        #[cfg(not(fuzzing))]
        fn main() {}
    };
}

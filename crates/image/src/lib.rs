//! Images of root file systems.

mod reference;

pub use reference::{ImageRef, ImageRefError};

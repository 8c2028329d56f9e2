//! Tar archives of root filesystems, which come from anywhere and may be hostile.
//!
//! Nothing here resolves a path by itself: all that is made on disk is made by
//! [`pinfold_linux::beneath`], which follows no link and leaves no directory.

mod build;
mod decode;
mod entry;
mod header;
#[cfg(test)]
mod hostile;
mod invalid;
mod reader;
mod records;
mod root;
mod unpack;

pub(crate) use build::{Access, Builder};
pub(crate) use decode::{digest_of, hexadecimal};
pub use invalid::InvalidImage;
pub(crate) use root::check_root;
pub use unpack::{Limits, Owners, UnpackError, UnpackReport, unpack_archive};

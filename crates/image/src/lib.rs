//! Images of root filesystems: the host's own programs, directories and archives.
//!
//! A crate of its own because it alone reads archives, which are hostile input, and because it
//! needs decompression and digests, which nothing beside it does. Synchronous: unpacking is bound
//! by the disk and by decompression, so callers give it a thread.

mod archive;
mod host;
mod reference;
mod store;
pub mod worker;

pub use archive::{InvalidImage, Limits, Owners, UnpackError, UnpackReport, unpack_archive};
pub use host::HostBind;
pub use reference::{ImageRef, ImageRefError};
pub use store::{ImageError, ImageStore, Prepared, Report, Unpack};
pub use worker::Mapped;

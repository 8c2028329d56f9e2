//! Client of the public API over its Unix socket.
//!
//! It is a crate of its own because it is the boundary that every front end shares and no front end
//! may go around. Nothing here starts a daemon, prints, or decides what to do about an error.
//!
//! Each request has a connection of its own: connecting to a Unix socket costs less than keeping
//! track of idle connections, and a daemon that was restarted is found again by itself.

mod client;
mod error;
mod files;
mod keys;
mod peer;
mod pools;
mod query;
mod stream;
mod transport;

pub use client::Client;
pub use error::ClientError;
pub use files::{ByteRange, ByteStream, WriteOptions};
pub use stream::{EventRange, EventStream, FrameReceiver, FrameSender};

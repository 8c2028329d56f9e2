//! Client of the public API over its Unix socket or its port.
//!
//! It is a crate of its own because it is the boundary that every front end shares and no front end
//! may go around. Nothing here starts a daemon, prints, or decides what to do about an error.
//!
//! On a Unix socket each request has a connection of its own: connecting costs less than keeping
//! track of idle connections, and a daemon that was restarted is found again by itself. Connections to
//! a port are kept for a moment, since a handshake costs more than a request. A key goes to the host
//! that was named and nowhere else: redirections are not followed and no proxy is asked.

mod client;
mod endpoint;
mod error;
mod events;
mod files;
mod idle;
mod keys;
mod peer;
mod pools;
mod query;
mod stream;
mod tcp;
mod transport;

pub use client::{Client, Remote};
pub use endpoint::{ApiKey, ApiKeyError, Endpoint, EndpointError, Port};
pub use error::ClientError;
pub use events::DaemonEvents;
pub use files::{ByteRange, ByteStream, WriteOptions};
pub use stream::{EventRange, EventStream, FrameReceiver, FrameSender};

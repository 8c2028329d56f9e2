//! Client of the public API over its Unix socket.

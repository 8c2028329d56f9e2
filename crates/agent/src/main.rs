//! The guest agent as a static binary.

fn main() {}

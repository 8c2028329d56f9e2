//! The daemon's port, asked by programs that we wrote and by programs that we did not.

#![cfg(test)]

mod conformance;
mod endings;
mod load;
mod remote;
#[path = "../world/service.rs"]
mod service;
#[path = "../world/terminal.rs"]
mod terminal;
mod walkthrough;
#[path = "../world/world.rs"]
mod world;

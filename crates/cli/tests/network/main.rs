//! The daemon's port, asked by programs that we wrote and by programs that we did not.

#![cfg(test)]

#[path = "../world/service.rs"]
mod service;
mod walkthrough;
#[path = "../world/world.rs"]
mod world;

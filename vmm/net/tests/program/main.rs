//! The real program, between a guest that smoltcp plays and a network that is another namespace.

#![allow(clippy::unwrap_used, reason = "tests")]

mod confined;
mod datagrams;
mod files;
mod guest;
mod handed;
mod listed;
mod many;
mod ports;
mod publish;
mod reach;
mod streams;
mod world;

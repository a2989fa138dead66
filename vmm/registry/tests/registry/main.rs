//! The client with registries: Debian's, and servers that fail, lie or stall.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod file;
mod hostile;
mod pull;
mod real;

//! Images as the outside sees them: one binary, so that what its rooms share is compiled, and
//! checked for use, once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod hostile;
mod layers;
mod local;
mod random;
mod shared;
mod sources;
mod support;
mod tools;
mod transfer;

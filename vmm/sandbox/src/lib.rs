//! A container in a machine of its own: what `nelly run` is made of, as a library that returns.
//!
//! Floors, imports go down only: `spec` and `timeline` → `state` → `agent` → `instance` → `life`.

pub mod agent;
pub mod instance;
pub mod life;
pub mod spec;
pub mod state;
pub mod timeline;

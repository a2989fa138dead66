//! Containers in machines of their own: the implementation of `nelly run` as a library.
//!
//! Modules import only from those before them: `spec` and `timeline` → `state` → `agent` →
//! `instance` → `life`.

pub mod agent;
pub mod instance;
pub mod life;
pub mod spec;
pub mod state;
pub mod timeline;

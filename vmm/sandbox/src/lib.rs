//! Containers in machines of their own: the implementation of `nelly run` as a library.
//!
//! Modules import only from those before them: `spec` and `timeline` → `state` → `wire` →
//! `agent` → `instance` → `life` → `connect` → `keep`.

pub mod agent;
pub mod connect;
pub mod instance;
pub mod keep;
pub mod life;
pub mod spec;
pub mod state;
pub mod timeline;
pub mod wire;

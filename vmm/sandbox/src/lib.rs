//! Containers in machines of their own: the implementation of `nelly run` as a library.
//!
//! Programs that use it begin at [`library`], which stands on everything else.
//!
//! Modules import only from those before them: `sys`, `spec` and `timeline` → `state` → `wire` →
//! `agent` → `instance` → `life` → `connect` → `keep` → `library`. `metrics` stands beside `spec`.

pub mod agent;
pub mod connect;
pub mod instance;
pub mod keep;
pub mod library;
pub mod life;
pub mod metrics;
pub mod network;
pub mod spec;
pub mod state;
mod sys;
pub mod timeline;
pub mod wire;

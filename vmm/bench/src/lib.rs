//! The implementation of `nelly bench` as a library: starts of Nelly and other monitors are
//! measured with one clock, one guest and one definition of start and end.
//!
//! Modules import only from those before them: `stats`, `timeline`, `memory_use`, `host`, `sys` →
//! `plan`, `record` → `peer` → `runner` → `report`.
//!
//! The **start** is read from the clock immediately before the process is spawned. The **end** is
//! the moment when the marker's last byte is read from the pipe of the serial console, when the
//! agent answers, or when the process ends. The clock is `CLOCK_MONOTONIC`, in nanoseconds.

pub mod host;
pub mod memory_use;
pub mod peer;
pub mod plan;
pub mod record;
pub mod report;
pub mod runner;
pub mod stats;
mod sys;
pub mod timeline;

pub use sys::supported;

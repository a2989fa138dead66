//! `nelly bench` as a library: starts are measured beside other monitors, with one clock, one guest
//! and one definition of start and end.
//!
//! Floors, imports go down only: `stats`, `timeline`, `held`, `host`, `sys` → `plan`, `record` →
//! `peer` → `runner` → `report`.
//!
//! **Start** is the clock read just before the process is spawned; **end** is the marker's last
//! byte read from the serial console's pipe, the agent's answer, or the end of the process, as the
//! benchmark says. The clock is `CLOCK_MONOTONIC`, in nanoseconds.

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

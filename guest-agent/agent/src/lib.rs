//! The guest's PID 1 as a library, so that tests can drive its parts without a machine.
//!
//! Floors, imports go down only: `arch` and `sys`, then `mounts`, `cgroup`, `slots` and `timeline`,
//! `spawn`, `registry` (pure), `stdio`, `service`, and `main`.

pub mod arch;
pub mod cgroup;
pub mod mounts;
pub mod registry;
pub mod service;
pub mod slots;
pub mod spawn;
pub mod stdio;
pub mod sys;
pub mod timeline;

//! The guest's PID 1 as a library, so that tests can drive its parts without a machine.
//!
//! Layers, from the lowest; modules import only from lower ones: `arch` and `sys`; `cgroup`,
//! `network`, `slots` and `timeline`; `mounts`; `spawn`; `registry` and `inspect`; `stdio`;
//! `relay`; `service`; `main`.

pub mod arch;
pub mod cgroup;
pub mod inspect;
pub mod mounts;
pub mod network;
pub mod registry;
pub mod relay;
pub mod service;
pub mod slots;
pub mod spawn;
pub mod stdio;
pub mod sys;
pub mod timeline;
pub mod touch;

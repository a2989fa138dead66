//! The machine: a microVM on KVM or Hypervisor.framework.
//!
//! The rooms below stand on floors and import downwards only (`tests/tests/floor_plan/` reads
//! them): 0 `arch` `config` `sys` `text`, 1 `memory` `state` `timeline`, 2 `hv`, 3 `bus`, 4
//! `devices` `virtio`, 5 `boot`, 6 `machine`.

pub mod arch;
pub mod boot;
pub mod bus;
pub mod config;
pub mod devices;
pub mod hv;
pub mod machine;
pub mod memory;
pub mod state;
pub mod sys;
pub mod text;
pub mod timeline;
pub mod virtio;

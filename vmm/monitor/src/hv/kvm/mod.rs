//! KVM. What every architecture has is here, and what one of them has alone in the module of its
//! name; `own` is that of this host.
//!
//! # What a start costs
//! Opening: `open`, KVM_GET_API_VERSION. A machine: KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, then
//! what its architecture needs. Memory: one KVM_SET_USER_MEMORY_REGION a slot. A vCPU:
//! KVM_CREATE_VCPU, one mmap, what its architecture needs, and KVM_SET_SIGNAL_MASK. Nothing is
//! asked that API version 12 promises or that can be tried instead, and no state is read that is
//! known: after reset.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod exit;
mod host;
mod inner;
mod kick;
mod vcpu;
mod vm;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as own;
#[cfg(target_arch = "x86_64")]
use x86_64 as own;

pub use host::{Kvm, open};
pub use vcpu::KvmVcpu;
pub use vm::KvmVm;

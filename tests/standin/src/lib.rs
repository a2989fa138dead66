//! A stand-in for Hypervisor.framework, for tests alone: it exports the C functions of the
//! framework that Nelly's back end for macOS calls, and serves them by KVM of 64-bit Arm Linux. So
//! that back end itself, not a model of it, runs guests where no Mac is.
//!
//! It is written from Apple's documentation of the functions
//! (`developer.apple.com/documentation/hypervisor`), from Arm's of the syndromes, and from Linux'
//! of KVM. What it proves is that the back end fits this reading of them; what the framework does,
//! only a Mac can tell.
//!
//! # How an exit of KVM becomes one of the framework's
//! KVM decodes a load or store of a device itself and tells width and data, not the register, and
//! completes the instruction on the next entry. Here it is made to complete at once, without an
//! entry; by what changed the register is known (see [`transfer`]); register and program counter
//! are put back, and the caller finds what the framework shows: a data abort whose syndrome
//! describes the access, at the instruction. Calls of the firmware come by KVM's filter of such
//! calls; KVM reports the instruction behind an SMC, the framework the SMC itself.
//!
//! # What it cannot show
//! Exits that KVM never makes: WFI and WFE, system registers, debug exceptions, fetches and table
//! walks where no memory is, the virtual timer's. The immediate value of HVC and SMC, which is 0
//! here, and virtual addresses of aborts, which are 0 here. Calls of the architecture's own range
//! (`SMCCC_VERSION` and its like), which KVM answers itself. vCPUs made when one has run.

pub mod answer;
pub mod framework;
pub mod syndrome;
pub mod transfer;

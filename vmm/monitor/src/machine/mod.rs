//! The machine: assembly, vCPU threads, the event loop, life cycle, and the handle that an embedder
//! holds.
//!
//! One server serves both places: a thread of the embedder, or the process `nelly-monitor`. It
//! speaks the same control protocol over a Unix socket pair, so the handle is the same code, and
//! its end of file is the end of the machine.
//!
//! A machine begins with a kernel, or with the state of one that was saved: planned and built
//! alike, they differ in what fills the memory and in what vCPUs and devices start from.

mod assemble;
mod begin;
mod board;
mod build;
mod confine;
mod console;
mod faults;
mod files;
mod halt;
mod handle;
mod holder;
mod inspect;
mod inspection;
mod lifecycle;
mod mailbox;
mod outcome;
mod output;
mod plan;
mod requests;
mod running;
mod saving;
mod server;
mod snapshot;
mod threads;
mod vcpu;
mod watched;
mod wire;
mod workers;

#[cfg(feature = "testing")]
pub use confine::testing as confined;
pub use confine::{Confinement, Layers, Process};
pub use handle::{
    ControlError, Events, Isolation, Machine, MonitorError, Pending, Resources, StartError, Starting, Vsock,
    VsockListener,
};
pub use inspection::{
    BalloonState, ConsoleState, DeviceState, DiskState, FrameState, Inspection, MemorySizes, NetworkState,
    QueueState,
};
pub use outcome::{DeviceFaults, EndReason, Event, ExitCounts, Outcome, State};
pub use server::{run_alone, serve};
pub use snapshot::Snapshot;

//! The machine: assembly, vCPU threads, the event loop, life cycle, and the handle that an embedder holds.
//!
//! One server serves both places: a thread of the embedder, or the process `nelly-monitor`. It speaks the same control protocol over a
//! Unix socket pair, so the handle is the same code, and its end of file is the end of the machine.

mod handle;
mod outcome;
mod server;
mod wire;

pub use handle::{
    ControlError, Events, Machine, MonitorError, Pending, Place, Resources, StartError, Vsock, VsockListener,
};
pub use outcome::{EndReason, Event, ExitCounts, Outcome, State, Timings};

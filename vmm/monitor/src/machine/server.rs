//! The server of one machine: the event loop with the control connection on it.

use std::os::fd::{AsFd, OwnedFd};

use super::wire::{Received, Receiver, Reply, Request};
use crate::hv::HvError;

/// Stack of the loop's thread.
pub(super) const STACK_BYTES: usize = 256 << 10;

/// Serves the machine that the holder at the other end of `control` describes, until either ends.
pub(super) fn serve(control: OwnedFd) {
    let mut receiver = Receiver::default();
    while let Ok(Received::Frame(Request::Start { .. }, mut descriptors)) = receiver.receive(control.as_fd())
    {
        if !descriptors.is_empty() {
            Reply::new(descriptors.remove(0)).failed(&HvError::Unsupported { what: "a virtual machine" });
        }
    }
}

//! Queues in guest memory that the host's kernel serves instead of a worker (vhost-net).

#![allow(unsafe_code, reason = "the kernel is told the host's addresses of guest memory")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Memory;
use crate::sys::vhost::{self, Addresses, Bell, Region};

/// A queue as the kernel is told of it. Its rings are looked at once more here: nothing is believed
/// that the kernel writes to.
#[derive(Clone, Copy, Debug)]
pub struct KernelQueue<'a> {
    /// Entries.
    pub size: u16,
    /// The descriptor table, guest physical.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// The next entry of the available ring, which is the next of the used ring, too: no chain is
    /// held.
    pub next: u16,
    /// What the driver's notification wakes.
    pub kick: BorrowedFd<'a>,
    /// What the kernel wakes when the driver is to be interrupted.
    pub call: BorrowedFd<'a>,
    /// What the kernel wakes when it finds the rings broken.
    pub broken: BorrowedFd<'a>,
}

/// An open /dev/vhost-net, for one pair of queues. Dropping it ends what it serves.
#[derive(Debug)]
pub struct KernelNet {
    file: OwnedFd,
    features: u64,
    owned: bool,
    /// The memory that the kernel writes to, while it does.
    serves: Option<Memory>,
}

impl KernelNet {
    /// Takes what [`vhost::open`] has opened, here or in another process.
    ///
    /// # Errors
    /// It is something else.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        let features = vhost::features(file.as_fd())?;
        Ok(Self { file, features, owned: false, serves: None })
    }

    /// Features that it has.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Has the kernel serve these queues, to the guest and from it, with `tap`. Features are those
    /// that the driver has accepted, without those that the kernel need not know of.
    ///
    /// # Errors
    /// The kernel's refusal; then it serves nothing, and the queues are as they were.
    pub fn start(
        &mut self,
        memory: &Memory,
        features: u64,
        queues: [KernelQueue<'_>; 2],
        tap: BorrowedFd<'_>,
    ) -> io::Result<()> {
        if features & !self.features != 0 || self.serves.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let vhost = self.file.as_fd();
        if !self.owned {
            match vhost::own(vhost) {
                // A machine that starts anew has what its last run opened. Of another process's,
                // the kernel refuses all that follows.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                owned => owned?,
            }
            self.owned = true;
        }
        vhost::set_features(vhost, features)?;
        let regions: Vec<Region> = memory
            .iter()
            .map(|region| Region {
                guest: region.start_addr().0,
                len: region.len(),
                host: region.as_ptr().addr() as u64,
                flags: 0,
            })
            .collect();
        // SAFETY: this is guest memory, into which nobody has a reference. `serves` keeps it mapped
        // until `stop` has taken the queues back.
        unsafe { vhost::set_memory(vhost, &regions) }?;
        for (number, queue) in (0..).zip(&queues) {
            set_up(vhost, memory, number, queue)?;
        }
        self.serves = Some(memory.clone());
        for number in 0..2 {
            if let Err(error) = vhost::set_backend(self.file.as_fd(), number, Some(tap)) {
                self.stop();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes the queues back: what was in flight is done when this returns. Gives the next entry of
    /// each one's available ring; `None` if none was served, or the kernel does not say.
    pub fn stop(&mut self) -> Option<[u16; 2]> {
        self.serves.as_ref()?;
        let vhost = self.file.as_fd();
        // Both, whatever becomes of the first.
        let ended = [0, 1].map(|number| vhost::set_backend(vhost, number, None));
        if ended.iter().any(Result::is_err) {
            // The kernel goes on: the memory stays mapped for as long as this process lives.
            std::mem::forget(self.serves.take());
            return None;
        }
        self.serves = None;
        Some([vhost::place(vhost, 0).ok()?, vhost::place(vhost, 1).ok()?])
    }
}

impl Drop for KernelNet {
    fn drop(&mut self) {
        // Whoever opened the file may have it open still, and closing it here would end nothing.
        self.stop();
    }
}

fn set_up(vhost: BorrowedFd<'_>, memory: &Memory, number: u32, queue: &KernelQueue<'_>) -> io::Result<()> {
    let KernelQueue { size, descriptors, available, used, next, kick, call, broken } = *queue;
    let n = usize::from(size);
    let host = |address, len| {
        // A ring that lies in two regions has no one address.
        let slice = memory.get_slice(GuestAddress(address), len).map_err(io::Error::other)?;
        Ok::<_, io::Error>(slice.ptr_guard_mut().as_ptr().addr() as u64)
    };
    let rings = Addresses {
        descriptors: host(descriptors, 16 * n)?,
        available: host(available, 6 + 2 * n)?,
        used: host(used, 6 + 8 * n)?,
    };
    vhost::set_place(vhost, number, size, next)?;
    // SAFETY: as in `start`; each ring lies in guest memory, whole.
    unsafe { vhost::set_rings(vhost, number, rings) }?;
    for (bell, file) in [(Bell::Kick, kick), (Bell::Call, call), (Bell::Error, broken)] {
        vhost::set_bell(vhost, number, bell, file)?;
    }
    Ok(())
}

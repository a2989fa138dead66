//! The console (virtio 1.2, 5.3) with one port: bytes between the guest and a pair of descriptors.
//!
//! Both directions push back: input is read only when the guest has room for it, and a guest whose
//! output nobody takes waits.

#[cfg(test)]
mod tests;
mod worker;

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use self::worker::ConsoleWorker;
use super::device::{ActivateError, Activation, Device, Worker};
use super::interrupt::Interrupt;
use super::spec::id;
use crate::state::fields::stateful_fields;
use crate::state::{Sections, StateError, Stateful};
use crate::sys::Timer;

/// The size of the terminal in the configuration space counts (5.3.3).
const F_SIZE: u64 = 1;

/// The descriptors a console speaks through; non-blocking, or calls may hold up the loop. A regular
/// file will do for output.
#[derive(Debug)]
pub struct Ends {
    /// What the guest reads; `None` (or the end of the stream) is silence.
    pub input: Option<OwnedFd>,
    /// What the guest writes; `None` (or an error of the stream) swallows it.
    pub output: Option<OwnedFd>,
}

/// Between two workers.
#[derive(Debug)]
struct Idle {
    ends: Ends,
    progress: Progress,
}

/// What is under way, as data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Bytes of the transmit queue's next chain that were passed on already.
    sent: u32,
}

stateful_fields!(Progress { sent });

/// The device.
#[derive(Debug)]
pub struct Console {
    idle: Option<Idle>,
    size: ConsoleSize,
}

/// Tells the guest the size of the terminal. Cloning shares it.
#[derive(Clone, Default)]
pub struct ConsoleSize {
    /// Columns in the lower half, rows in the upper.
    packed: Arc<AtomicU32>,
    interrupt: Arc<Mutex<Option<Interrupt>>>,
}

impl std::fmt::Debug for ConsoleSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConsoleSize({:#x})", self.packed.load(Ordering::Relaxed))
    }
}

impl ConsoleSize {
    /// Sets the size; a driver that runs is told. An interrupt that cannot be delivered is an error
    /// of the host.
    pub fn set(&self, columns: u16, rows: u16) -> std::io::Result<()> {
        let packed = u32::from(rows) << 16 | u32::from(columns);
        if self.packed.swap(packed, Ordering::SeqCst) == packed {
            return Ok(());
        }
        match &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(interrupt) => interrupt.config_changed(),
            None => Ok(()),
        }
    }

    fn tell(&self, interrupt: Option<Interrupt>) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

impl Console {
    /// A console between the guest and `ends`.
    #[must_use]
    pub fn new(ends: Ends) -> Self {
        Self { idle: Some(Idle { ends, progress: Progress::default() }), size: ConsoleSize::default() }
    }

    /// What tells the guest the size of the terminal.
    #[must_use]
    pub fn size(&self) -> ConsoleSize {
        self.size.clone()
    }
}

impl Device for Console {
    fn id(&self) -> u32 {
        id::CONSOLE
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // cols, rows; without MULTIPORT nothing behind them counts.
        super::device::read_bytes(&self.size.packed.load(Ordering::SeqCst).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let receive = activation.take_queue(0)?;
        let transmit = activation.take_queue(1)?;
        let timer = Timer::new().map_err(ActivateError::Host)?;
        let idle =
            self.idle.take().ok_or_else(|| ActivateError::Host(std::io::ErrorKind::ResourceBusy.into()))?;
        let Activation { features, memory, queues: _, interrupt } = activation;
        self.size.tell((features & F_SIZE != 0).then(|| interrupt.clone()));
        Ok(Box::new(ConsoleWorker::new(idle, receive, transmit, memory, interrupt, timer)))
    }

    fn reclaim(&mut self, state: Box<dyn Any + Send>) {
        self.size.tell(None);
        if let Ok(idle) = state.downcast::<Idle>() {
            self.idle = Some(*idle);
        }
    }

    fn reset(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.progress = Progress::default();
        }
    }
}

/// What the streams have taken and not passed on, and whether they have ended, is the host's.
impl Stateful for Console {
    /// # Panics
    /// A worker has the console.
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { idle, size: ConsoleSize { packed, interrupt: _ } } = self;
        let Idle { ends: _, progress } =
            idle.as_ref().expect("a device has no worker when it says its state");
        state.put_fields(name, 1, |fields| {
            fields.put(progress);
            fields.put(&packed.load(Ordering::SeqCst));
        });
    }

    /// # Panics
    /// As [`Console::save`].
    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let idle = self.idle.as_mut().expect("a device has no worker when its state comes back");
        let packed;
        (idle.progress, packed) = state.take_fields(name, 1, |fields| Ok((fields.get()?, fields.get()?)))?;
        self.size.packed.store(packed, Ordering::SeqCst);
        Ok(())
    }
}

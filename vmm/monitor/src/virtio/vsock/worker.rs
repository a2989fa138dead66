//! The device on its loop: three queues, a muxer, and the order in which they are served.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::muxer::{Muxer, Served};
use super::table::Handle;
use super::{KEY_BELL, KEY_DOOR, KEY_EVENT, KEY_RX, KEY_TICK, KEY_TX};
use crate::memory::Memory;
use crate::sys::Interest;
use crate::virtio::device::{ActivateError, Activation, DeviceFault, Registrar, Returned, Worker};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queue;

/// Chains of a queue served before other devices have their turn.
const BUDGET: usize = 256;

/// Event: all connections of the guest are gone (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
/// How long a driver that was told so may keep new connections waiting.
const RESET_MAX: Duration = Duration::from_secs(if cfg!(test) { 600 } else { 1 });

/// See the module.
pub(super) struct VsockWorker {
    muxer: Muxer,
    rx: Queue,
    tx: Queue,
    event: Option<Queue>,
    memory: Memory,
    interrupt: Interrupt,
    /// The guest's packets wait until some of the RSTs they caused have left.
    choked: bool,
    reset: Reset,
    /// Faults of the muxer that the device's slot has counted.
    counted: u64,
}

/// What the driver knows of connections that stayed behind.
///
/// Hearing of it, a driver ends every connection, those made meanwhile too. So it is told first,
/// and no packet goes to the guest before its driver has put the buffer of the event back, which
/// Linux does when it is through with it. A driver that does not put it back (it need not) waits
/// for [`RESET_MAX`].
enum Reset {
    /// There is nothing to know.
    None,
    /// TRANSPORT_RESET is to be told, since then.
    Due(Instant),
    /// It was told when so many buffers of events were left.
    Told(Instant, u16),
}

impl Reset {
    fn holds_packets(&self, now: Instant) -> bool {
        match self {
            Self::None => false,
            Self::Due(since) | Self::Told(since, _) => now.duration_since(*since) < RESET_MAX,
        }
    }
}

/// What a pause leaves for [`super::Vsock`].
pub(super) struct Rest {
    pub(super) muxer: Muxer,
    pub(super) reset_due: bool,
}

impl VsockWorker {
    /// A worker of what is left of the last one; what it lacks is left as it was.
    pub(super) fn new(mut activation: Activation, rest: &mut Option<Rest>) -> Result<Self, ActivateError> {
        let (rx, tx) = (activation.take_queue(0)?, activation.take_queue(1)?);
        let Some(Rest { muxer, reset_due }) = rest.take() else {
            return Err(ActivateError::Host(io::Error::other("its last worker has not come back")));
        };
        Ok(Self {
            counted: muxer.faults(),
            muxer,
            rx,
            tx,
            event: activation.take_queue(2).ok(),
            memory: activation.memory,
            interrupt: activation.interrupt,
            choked: false,
            reset: if reset_due { Reset::Due(Instant::now()) } else { Reset::None },
        })
    }

    /// Packets of the guest.
    fn receive(&mut self) -> Result<(), DeviceFault> {
        self.tx.disable_notifications(&self.memory)?;
        for _ in 0..BUDGET {
            self.choked = self.muxer.is_choked();
            if self.choked {
                // Room for a RST wakes us.
                return Ok(());
            }
            match self.tx.pop(&self.memory)? {
                Some(chain) => {
                    self.muxer.receive(&chain, &self.memory)?;
                    self.tx.push_used(&self.memory, &chain, 0)?;
                }
                None if self.tx.enable_notifications(&self.memory)? => {}
                None => return Ok(()),
            }
        }
        Ok(self.tx.doorbell().notify()?)
    }

    /// Packets to the guest.
    fn speak(&mut self) -> Result<(), DeviceFault> {
        self.rx.disable_notifications(&self.memory)?;
        for _ in 0..BUDGET {
            if !self.muxer.has_word() {
                return Ok(());
            }
            let Some(chain) = self.rx.pop(&self.memory)? else {
                if self.rx.enable_notifications(&self.memory)? {
                    continue;
                }
                return Ok(());
            };
            match self.muxer.serve(&chain, &self.memory)? {
                Served::Written(len) => self.rx.push_used(&self.memory, &chain, len)?,
                Served::Unused => self.rx.unpop(chain),
            }
        }
        Ok(self.rx.doorbell().notify()?)
    }

    /// Tells of the reset if it is due. `true`: packets to the guest wait for its driver.
    fn tell_reset(&mut self) -> Result<bool, DeviceFault> {
        let Some(event) = &mut self.event else { return Ok(false) };
        if let Reset::Due(since) = self.reset {
            let Some(chain) = event.pop(&self.memory)? else {
                // One that came in this moment rings the bell.
                if event.enable_notifications(&self.memory)? {
                    event.doorbell().notify()?;
                }
                return Ok(self.reset.holds_packets(Instant::now()));
            };
            let written = chain.writer(&self.memory).write_all(&TRANSPORT_RESET.to_le_bytes()).is_ok();
            // Before the driver hears of it, and puts it back.
            let left = event.notify_beyond_pending(&self.memory)?;
            event.push_used(&self.memory, &chain, if written { 4 } else { 0 })?;
            event.signal(&self.memory, &self.interrupt)?;
            if written {
                self.reset = Reset::Told(since, left);
            }
        }
        if let Reset::Told(_, left) = self.reset
            && event.pending(&self.memory)? > left
        {
            self.reset = Reset::None;
        }
        Ok(self.reset.holds_packets(Instant::now()))
    }

    /// Ends a turn: what it moved is published, one batch a queue.
    fn settle(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let spoken = self.transmit_and_receive(registrar);
        self.tx.signal(&self.memory, &self.interrupt)?;
        self.rx.signal(&self.memory, &self.interrupt)?;
        spoken
    }

    fn transmit_and_receive(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        if !self.tell_reset()? {
            self.speak()?;
            if self.choked && !self.muxer.is_choked() {
                self.receive()?;
                self.speak()?;
            }
        }
        if self.muxer.sync(registrar)? {
            self.rx.doorbell().notify()?;
        }
        while self.counted < self.muxer.faults() {
            self.counted += 1;
            let fault = DeviceFault::Protocol("a packet or buffer of the socket device is not as it must be");
            self.interrupt.tally().fault(&fault);
        }
        Ok(())
    }
}

impl Worker for VsockWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        registrar.add(self.rx.doorbell().as_fd(), KEY_RX, Interest::READ)?;
        registrar.add(self.tx.doorbell().as_fd(), KEY_TX, Interest::READ)?;
        if let Some(event) = &self.event {
            registrar.add(event.doorbell().as_fd(), KEY_EVENT, Interest::READ)?;
        }
        registrar.add(self.muxer.bell().as_fd(), KEY_BELL, Interest::READ)?;
        registrar.add(self.muxer.timer().as_fd(), KEY_TICK, Interest::READ)?;
        self.muxer.resume();
        let received = self.receive();
        // What came before a fault is published too.
        self.settle(registrar)?;
        received
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        self.muxer.suspend(registrar);
        // What a failed registration left out cannot be removed: nothing to be done about it.
        let _ = registrar.remove(self.rx.doorbell().as_fd());
        let _ = registrar.remove(self.tx.doorbell().as_fd());
        if let Some(event) = &self.event {
            let _ = registrar.remove(event.doorbell().as_fd());
        }
        let _ = registrar.remove(self.muxer.bell().as_fd());
        let _ = registrar.remove(self.muxer.timer().as_fd());
    }

    fn ready(&mut self, key: u32, ready: Interest, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let mut received = Ok(());
        match key {
            KEY_RX => {
                self.rx.doorbell().consume()?;
            }
            KEY_TX => {
                self.tx.doorbell().consume()?;
                received = self.receive();
            }
            KEY_EVENT => {
                if let Some(event) = &self.event {
                    event.doorbell().consume()?;
                }
            }
            KEY_BELL => {
                self.muxer.bell().consume()?;
                self.muxer.requests();
            }
            KEY_TICK => {
                if self.muxer.timer().consume()? {
                    self.muxer.tick(Instant::now());
                }
            }
            KEY_DOOR => self.muxer.accept(),
            _ => match Handle::from_key(key) {
                Some(handle) => self.muxer.ready(handle, ready),
                None => self.muxer.channel_ready(key),
            },
        }
        self.settle(registrar)?;
        received
    }

    fn quiesce(self: Box<Self>) -> Returned {
        let Self { muxer, rx, tx, event, memory: _, interrupt: _, choked: _, reset, counted: _ } = *self;
        let reset_due = matches!(reset, Reset::Due(_));
        Returned { state: Box::new(Rest { muxer, reset_due }), queues: vec![Some(rx), Some(tx), event] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_keeps_the_buffer_holds_packets_up_for_a_while() {
        let since = Instant::now();
        for reset in [Reset::Due(since), Reset::Told(since, 3)] {
            assert!(reset.holds_packets(since) && reset.holds_packets(since + RESET_MAX / 2));
            assert!(!reset.holds_packets(since + RESET_MAX));
        }
        assert!(!Reset::None.holds_packets(since));
    }
}

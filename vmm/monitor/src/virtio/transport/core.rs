//! The transport without its registers: device status, feature negotiation, queue descriptions, and
//! who has the worker.
//!
//! Everything here runs on vCPU threads (and on the machine's for pause and attach), under the
//! bus's lock on this one device, and so nothing here waits. A driver that goes on at once after a
//! reset, as Linux does, is told to write again until the worker is home.

mod state;

use std::io;
use std::sync::Arc;

use crate::bus::Effect;
use crate::memory::Memory;
use crate::sys::{Notifier, fits};
use crate::virtio::device::{Activation, Device, DeviceFault, ReturnBox, Returned, Running, WorkerHost};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Queue, QueueConfig, QueueConfigError};
use crate::virtio::spec::{feature, id, status};
use crate::virtio::tally::Identity;

/// Features that the transport and the ring code bring to every device.
const RING_FEATURES: u64 = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;

const FOUND: u8 = status::ACKNOWLEDGE;
const DRIVEN: u8 = FOUND | status::DRIVER;
const NEGOTIATED: u8 = DRIVEN | status::FEATURES_OK;
const READY: u8 = NEGOTIATED | status::DRIVER_OK;

/// The steps a driver may take (3.1.1): from, to. FAILED may join any state and 0 resets; all else
/// is ignored.
const STEPS: [(u8, u8); 5] =
    [(0, FOUND), (0, DRIVEN), (FOUND, DRIVEN), (DRIVEN, NEGOTIATED), (NEGOTIATED, READY)];

/// What the driver wrote, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Registers {
    status: u8,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueConfig>,
}

impl Registers {
    fn new(queue_sizes: &[u16]) -> Self {
        Self { queues: queue_sizes.iter().map(|&size| QueueConfig::new(size)).collect(), ..Self::default() }
    }
}

/// Who has the queues.
enum Life {
    /// No driver yet.
    Idle,
    /// The worker, on the machine's loop.
    Running(ReturnBox),
    /// The driver reset the device; the worker is on its way home.
    Resetting(ReturnBox),
    /// The machine pauses; the worker is on its way home.
    Pausing(ReturnBox),
    /// The device is taken out; the worker is on its way home.
    Detaching(ReturnBox),
    /// The transport, until the machine resumes, or the driver resets a device that waits for it.
    Paused(Vec<Option<Queue>>),
    /// Nobody: the device could not start, and waits for a reset.
    Broken,
}

/// Why a device was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is one already.
    #[error("slot {0} holds a device")]
    Occupied(u16),
    /// No descriptor left for a queue's doorbell.
    #[error("cannot make a doorbell for slot {slot}")]
    Doorbell {
        /// The slot.
        slot: u16,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// One slot of the machine: empty, or a device and everything its driver said to it.
pub struct Transport {
    slot: u16,
    memory: Memory,
    interrupt: Interrupt,
    host: Arc<dyn WorkerHost>,
    device: Option<Box<dyn Device>>,
    /// Of every queue that a device here ever had. The next device takes them over: the hypervisor
    /// knows them by the slot's addresses, and taking one back from it would cost a grace period of
    /// the host's kernel.
    doorbells: Vec<Arc<Notifier>>,
    registers: Registers,
    life: Life,
}

impl Transport {
    /// An empty slot. `slot` names its worker to `host`.
    #[must_use]
    pub fn new(slot: u16, memory: Memory, interrupt: Interrupt, host: Arc<dyn WorkerHost>) -> Self {
        Self {
            slot,
            memory,
            interrupt,
            host,
            device: None,
            doorbells: Vec::new(),
            registers: Registers::default(),
            life: Life::Idle,
        }
    }

    /// Puts a device into the empty slot, at start or while the guest runs: then its driver finds
    /// it by probing the slot again. The doorbells may be offered to the hypervisor afterwards.
    pub fn attach(&mut self, device: Box<dyn Device>) -> Result<(), AttachError> {
        if self.device.is_some() {
            return Err(AttachError::Occupied(self.slot));
        }
        while self.doorbells.len() < device.queue_sizes().len() {
            let bell = Notifier::new().map_err(|source| AttachError::Doorbell { slot: self.slot, source })?;
            self.doorbells.push(Arc::new(bell));
        }
        self.registers = Registers::new(device.queue_sizes());
        let queues = device.queue_sizes().iter().map(|_| Arc::default()).collect();
        let identity = Identity { device_id: device.id(), name: device.name(), queues };
        self.interrupt.tally().identify(Some(identity));
        self.device = Some(device);
        Ok(())
    }

    /// Takes the device out, whatever its driver is doing: what is in flight is finished or
    /// cancelled, and everything behind the device is given back. Returns at once;
    /// [`Transport::vacant`] tells when it is done. A driver that was not told before finds an
    /// empty slot and waits in vain for what it had asked.
    pub fn detach(&mut self) {
        match std::mem::replace(&mut self.life, Life::Broken) {
            Life::Running(home) => {
                self.host.stop(self.slot);
                self.life = Life::Detaching(home);
            }
            // Called home already.
            Life::Pausing(home) | Life::Resetting(home) | Life::Detaching(home) => {
                self.life = Life::Detaching(home);
            }
            Life::Idle | Life::Paused(_) | Life::Broken => self.vacate(),
        }
        self.collect();
    }

    /// Whether there is no device: what [`Transport::detach`] asked for is done.
    pub fn vacant(&mut self) -> bool {
        self.collect();
        self.device.is_none()
    }

    /// What the driver writes to notify each queue, and what that must wake: for the hypervisor's
    /// short cut.
    pub fn doorbells(&self) -> impl Iterator<Item = (u32, &Arc<Notifier>)> {
        (0u32..).zip(&self.doorbells)
    }

    /// The slot's number.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The device's interrupt: its registers, and how often the device broke.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Accesses so far that the specification forbids; they were ignored.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.interrupt.tally().ignored()
    }

    /// The device's id, 0 for an empty slot.
    #[must_use]
    pub fn device_id(&self) -> u32 {
        self.device.as_ref().map_or(id::NONE, |device| device.id())
    }

    /// Asks for the worker back, for a pause. Returns at once; [`Transport::paused`] tells when it
    /// is done.
    pub fn pause(&mut self) {
        self.life = match std::mem::replace(&mut self.life, Life::Broken) {
            Life::Running(home) => {
                self.host.stop(self.slot);
                Life::Pausing(home)
            }
            other => other,
        };
    }

    /// Whether nothing of this device is in flight: what [`Transport::pause`] or a reset asked for
    /// is done.
    pub fn paused(&mut self) -> bool {
        self.collect();
        !matches!(self.life, Life::Running(_) | Life::Resetting(_) | Life::Pausing(_) | Life::Detaching(_))
    }

    /// Starts the worker again, on the queues as they stood. Without a pause before, nothing
    /// happens, nor when the device waits for a reset.
    pub fn resume(&mut self) {
        match std::mem::replace(&mut self.life, Life::Broken) {
            Life::Paused(queues) if !self.interrupt.needs_reset() => self.start(queues),
            other => self.life = other,
        }
    }

    // What the registers ask for.

    /// The status register. While a worker is on its way home after a reset, the old status: a
    /// driver polls for 0.
    pub(super) fn status(&mut self) -> u8 {
        self.collect();
        let broken = if self.interrupt.needs_reset() { status::NEEDS_RESET } else { 0 };
        self.registers.status | broken
    }

    /// The driver writes the status register.
    pub(super) fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.reset();
        } else if !self.settled() {
            return Effect::Again;
        } else {
            self.step(value);
        }
        self.interrupt.tally().set_status(self.registers.status);
        Effect::None
    }

    /// A step of the driver's, if it is one.
    fn step(&mut self, value: u8) {
        let now = self.registers.status;
        // The driver may write NEEDS_RESET back as it read it; that bit is ours.
        let value = value & !status::NEEDS_RESET;
        if value == now {
            return;
        }
        if value == now | status::FAILED {
            self.registers.status = value;
            return;
        }
        if self.device.is_none() || !STEPS.contains(&(now, value)) {
            return self.ignore();
        }
        match value {
            // Not set: the driver reads it back and gives up (3.1.1, step 6).
            NEGOTIATED if !self.acceptable() => self.ignore(),
            READY => {
                self.registers.status = READY;
                self.activate();
            }
            _ => self.registers.status = value,
        }
    }

    fn acceptable(&self) -> bool {
        self.accepts(self.registers.driver_features)
    }

    /// Whether a driver may accept these features.
    fn accepts(&self, features: u64) -> bool {
        features & !self.offered() == 0 && features & feature::VERSION_1 != 0
    }

    fn offered(&self) -> u64 {
        self.device.as_ref().map_or(0, |device| device.features() | RING_FEATURES & !device.withheld())
    }

    /// The window of device features that the driver selected.
    pub(super) fn device_features(&self) -> u32 {
        window(self.offered(), self.registers.device_features_select)
    }

    pub(super) fn select_device_features(&mut self, select: u32) {
        self.registers.device_features_select = select;
    }

    pub(super) fn select_driver_features(&mut self, select: u32) {
        self.registers.driver_features_select = select;
    }

    /// The driver accepts features, only between DRIVER and FEATURES_OK.
    pub(super) fn set_driver_features(&mut self, value: u32) -> Effect {
        if !self.settled() {
            return Effect::Again;
        }
        if self.registers.status != DRIVEN {
            self.ignore();
            return Effect::None;
        }
        let value = u64::from(value);
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_select {
            0 => *features = *features & !0xffff_ffff | value,
            1 => *features = *features & 0xffff_ffff | value << 32,
            _ if value == 0 => {}
            _ => self.ignore(),
        }
        Effect::None
    }

    pub(super) fn select_queue(&mut self, select: u32) {
        self.registers.queue_select = select;
    }

    /// The queue the driver selected; `None` beyond the last. While a worker is on its way home
    /// after a reset it is as it was: a driver that has read QueueReady = 0 frees the rings.
    pub(super) fn queue(&mut self) -> Option<&QueueConfig> {
        self.collect();
        let index = usize::try_from(self.registers.queue_select).ok()?;
        self.registers.queues.get(index)
    }

    /// The driver describes the selected queue, only between FEATURES_OK and DRIVER_OK. What it
    /// writes is believed by nobody yet.
    pub(super) fn configure_queue(&mut self, set: impl FnOnce(&mut QueueConfig)) -> Effect {
        if !self.settled() {
            return Effect::Again;
        }
        let index = fits::<_, usize>(
            self.registers.queue_select,
            "usize has at least 32 bits on every host of Nelly",
        );
        match self.registers.queues.get_mut(index) {
            Some(queue) if self.registers.status == NEGOTIATED => set(queue),
            _ => self.ignore(),
        }
        Effect::None
    }

    /// The driver notifies a queue by an exit: the hypervisor did not take the short cut.
    pub(super) fn notify(&mut self, queue: u32) {
        let bells = &self.doorbells[..self.registers.queues.len()];
        let bell = usize::try_from(queue).ok().and_then(|queue| bells.get(queue));
        match (&self.life, bell) {
            // A full counter is no error, and nothing else can fail on a descriptor that is ours.
            (Life::Running(_), Some(bell)) => drop(bell.notify()),
            _ => self.ignore(),
        }
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let Some(device) = &self.device {
            device.read_config(offset, data);
        }
    }

    pub(super) fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Some(device) = &mut self.device {
            device.write_config(offset, data);
        }
    }

    pub(super) fn ignore(&mut self) {
        self.interrupt.tally().ignore();
    }

    // Life.

    fn activate(&mut self) {
        let queues: Result<Vec<_>, QueueConfigError> =
            (0..self.registers.queues.len()).map(|index| self.queue_of(index)).collect();
        match queues {
            Ok(queues) => self.start(queues),
            Err(fault) => self.broken(&fault.into()),
        }
    }

    /// The device's end of queue `index`, from its beginning; `None` for one that is not enabled.
    fn queue_of(&self, index: usize) -> Result<Option<Queue>, QueueConfigError> {
        let config = &self.registers.queues[index];
        if !config.ready {
            return Ok(None);
        }
        let rings = config.validate(&self.memory)?;
        let queue = Queue::new(rings, self.registers.driver_features, self.doorbells[index].clone());
        let tally = self.interrupt.tally().queue(index);
        Ok(Some(match tally {
            Some(tally) => queue.counted(tally),
            None => queue,
        }))
    }

    fn start(&mut self, queues: Vec<Option<Queue>>) {
        let Some(device) = &mut self.device else { return };
        let activation = Activation {
            features: self.registers.driver_features,
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
        };
        match device.activate(activation) {
            Ok(worker) => {
                let home = ReturnBox::default();
                let placement = device.placement();
                self.host.start(Running::new(
                    self.slot,
                    placement,
                    worker,
                    self.interrupt.clone(),
                    home.clone(),
                ));
                self.life = Life::Running(home);
            }
            Err(error) => self.broken(&error.into()),
        }
    }

    fn broken(&mut self, fault: &DeviceFault) {
        self.life = Life::Broken;
        self.interrupt.fail(fault);
    }

    fn reset(&mut self) {
        match std::mem::replace(&mut self.life, Life::Broken) {
            Life::Running(home) => {
                self.host.stop(self.slot);
                self.life = Life::Resetting(home);
            }
            // A pause asked for the worker already; it comes home to a reset instead.
            Life::Pausing(home) | Life::Resetting(home) => self.life = Life::Resetting(home),
            Life::Detaching(home) => self.life = Life::Detaching(home),
            Life::Idle | Life::Paused(_) | Life::Broken => self.forget(),
        }
        self.collect();
    }

    /// Everything the driver said is forgotten.
    fn forget(&mut self) {
        if let Some(device) = &mut self.device {
            device.reset();
            self.registers = Registers::new(device.queue_sizes());
        } else {
            self.registers = Registers::default();
        }
        self.interrupt.reset();
        self.interrupt.tally().set_status(0);
        if let Some(identity) = self.interrupt.tally().identity() {
            identity.queues.iter().for_each(|tally| tally.end());
        }
        self.life = Life::Idle;
    }

    /// The slot is empty from here on.
    fn vacate(&mut self) {
        self.device = None;
        self.forget();
        self.interrupt.tally().identify(None);
    }

    /// Takes the worker's return in, if it came.
    fn collect(&mut self) {
        let (Life::Resetting(home) | Life::Pausing(home) | Life::Detaching(home)) = &self.life else {
            return;
        };
        let Some(Returned { state, queues }) = home.take() else { return };
        if let Some(device) = &mut self.device {
            device.reclaim(state);
        }
        match self.life {
            Life::Pausing(_) => self.life = Life::Paused(queues),
            Life::Detaching(_) => self.vacate(),
            _ => self.forget(),
        }
    }

    /// Whether neither a reset nor a detach is under way.
    fn settled(&mut self) -> bool {
        self.collect();
        !matches!(self.life, Life::Resetting(_) | Life::Detaching(_))
    }
}

impl Drop for Transport {
    /// A worker that is out is called home, so that the device's resources end with the slot.
    fn drop(&mut self) {
        if let Life::Running(_) = self.life {
            self.host.stop(self.slot);
        }
    }
}

/// 32 of 64 bits, as selected.
fn window(bits: u64, select: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "a window on the bits is what is wanted")]
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

//! The handle: what an embedder holds of a machine, wherever the machine runs.
//!
//! Every method but the constructors takes `&self` and may be called from any thread. Nothing
//! polls: each wait has a descriptor, and ends with the machine.

mod ask;
mod ending;
mod error;
mod events;
mod polling;
mod snapshot;
mod start;
mod vsock;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;

use ask::Control;
use ending::EndState;

use super::files::{Handed, Label};
use super::inspection::{DeviceState, Inspection};
use super::outcome::{ExitCounts, State};
use super::wire::{Answer, ControlRequest, NewDevice};
use crate::config::{DeviceName, DiskConfig, DiskId, DiskLimits, FileSource};
use crate::sys;
use crate::timeline::GuestCounter;

pub use ask::Pending;
pub use error::{ControlError, MonitorError, StartError};
pub use events::Events;
pub use start::Starting;
pub use vsock::{Vsock, VsockListener};

/// Where a machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// In a process of its own: `nelly-monitor`, found at this path. It inherits standard error.
    Process {
        /// The program.
        monitor: PathBuf,
    },
    /// In threads of this process. It is this process's own code that runs there, and it is trusted
    /// to come to its end: nothing can end a thread from outside. So [`Machine::wait`],
    /// [`Machine::close`] and dropping the machine wait for its threads without a limit of time.
    /// They take milliseconds, but for a system call of theirs that the host does not finish, such
    /// as a write to a disk whose server is gone. Whoever cannot bear that has
    /// [`Isolation::Process`], whose monitor is killed when it takes too long.
    Thread,
}

/// Files that a machine is given: [`FileSource::Fd`] of its config counts through them.
#[derive(Debug, Default)]
pub struct Resources {
    handed: Handed,
    log: Option<OwnedFd>,
}

impl Resources {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file and says how the config names it.
    pub fn add(&mut self, file: impl Into<OwnedFd>) -> FileSource {
        self.handed.push(file.into(), Label::default())
    }

    /// The same with what messages call the file: its path, say.
    pub fn add_named(&mut self, file: impl Into<OwnedFd>, name: impl Into<String>) -> FileSource {
        self.handed.push(file.into(), Label::named(name))
    }

    /// Adds several files and says how the config names them.
    pub fn add_all(&mut self, files: impl IntoIterator<Item = impl Into<OwnedFd>>) -> Vec<FileSource> {
        files.into_iter().map(|file| self.add(file)).collect()
    }

    /// Where the machine says a line for the first fault of each kind that its guest makes. Without
    /// it `nelly-monitor` says them on its standard error, and a machine in threads nowhere:
    /// [`Machine::inspect`], [`Outcome::faults`] and [`Event::Fault`] tell them too.
    pub fn log_to(&mut self, log: impl Into<OwnedFd>) {
        self.log = Some(log.into());
    }
}

/// A running machine. Dropping it ends the machine at once and returns every descriptor, thread and
/// mapping.
#[derive(Debug)]
pub struct Machine {
    control: Control,
    ending: Mutex<EndState>,
    spawned_ns: u64,
}

impl Machine {
    /// Asks for an orderly end: devices drained and flushed. Returns when it is under way;
    /// [`Machine::wait`] tells when it is over. What the guest should do before that is its agent's
    /// business.
    pub fn stop(&self) -> Result<(), ControlError> {
        self.control.ask(&ControlRequest::Stop, &[])?.done()
    }

    /// Presses the power button, which asks the guest to switch itself off. Whether it does so is
    /// its own business; in a pause it is told when it runs on.
    ///
    /// # Errors
    /// [`ControlError::NoPowerButton`]: the guest was told of none, as without ACPI. The others are
    /// those of every request.
    pub fn press_power_button(&self) -> Result<(), ControlError> {
        self.control.ask(&ControlRequest::PowerButton, &[])?.done()
    }

    /// Gets the vCPUs out of the guest and parks the devices between requests. Returns when nothing
    /// is in flight.
    pub fn pause(&self) -> Result<(), ControlError> {
        self.control.ask(&ControlRequest::Pause, &[])?.done()
    }

    /// Lets a paused machine run on.
    pub fn resume(&self) -> Result<(), ControlError> {
        self.control.ask(&ControlRequest::Resume, &[])?.done()
    }

    /// Where the machine is in its life.
    pub fn state(&self) -> Result<State, ControlError> {
        match self.control.ask(&ControlRequest::State, &[])?.finish()? {
            (Answer::State(state), _) => Ok(state),
            _ => Err(ControlError::Confused),
        }
    }

    /// What made the vCPUs leave the guest so far. Counts of vCPUs that are in the guest may lag
    /// behind.
    pub fn exit_counts(&self) -> Result<ExitCounts, ControlError> {
        match self.control.ask(&ControlRequest::Counters, &[])?.finish()? {
            (Answer::Counters(counts), _) => Ok(counts),
            _ => Err(ControlError::Confused),
        }
    }

    /// What the machine shows of itself: every device's counters, faults and queue positions,
    /// exits, memory, consoles. Waits for no vCPU, whatever it does, and works in a pause too.
    pub fn inspect(&self) -> Result<Inspection, ControlError> {
        self.begin_inspect()?.inspection()
    }

    /// The same in two steps, with a descriptor to poll in between.
    pub fn begin_inspect(&self) -> Result<Pending, ControlError> {
        self.control.ask(&ControlRequest::Inspect, &[])
    }

    /// What the guest's counter shows, and when: it puts on CLOCK_MONOTONIC what the guest stamped.
    /// Gets every vCPU out of the guest once. `None` when the hypervisor cannot tell; refused of a
    /// machine that does not run.
    pub fn guest_counter(&self) -> Result<Option<GuestCounter>, ControlError> {
        self.begin_guest_counter()?.guest_counter()
    }

    /// The same in two steps, with a descriptor to poll in between.
    pub fn begin_guest_counter(&self) -> Result<Pending, ControlError> {
        self.control.ask(&ControlRequest::GuestCounter, &[])
    }

    /// CLOCK_MONOTONIC in nanoseconds when the machine's process or thread had been made.
    #[must_use]
    pub fn spawned_ns(&self) -> u64 {
        self.spawned_ns
    }

    /// What happens to the machine from now on.
    pub fn events(&self) -> Result<Events, ControlError> {
        let (ours, theirs) = sys::stream_pair().map_err(ControlError::Talk)?;
        self.control.ask(&ControlRequest::Events, &[theirs])?.done()?;
        Events::new(ours, self.control.clone()).map_err(ControlError::Talk)
    }

    /// The stream of the virtio console, whose endpoint must be `stream`. Starts with the latest
    /// output; a second call takes the console over from the first.
    pub fn console(&self) -> Result<UnixStream, ControlError> {
        self.control.ask(&ControlRequest::Stream { device: DeviceName::Console }, &[])?.stream()
    }

    /// The stream of the serial port, see [`Machine::console`].
    pub fn serial(&self) -> Result<UnixStream, ControlError> {
        self.begin_serial()?.stream()
    }

    /// The same in two steps, with a descriptor to poll in between.
    pub fn begin_serial(&self) -> Result<Pending, ControlError> {
        self.control.ask(&ControlRequest::Stream { device: DeviceName::Serial }, &[])
    }

    /// The guest's ports.
    #[must_use]
    pub fn vsock(&self) -> Vsock {
        Vsock(self.control.clone())
    }

    /// Puts a disk into a spare slot of the running machine. Its sources that are descriptors are
    /// the files of `resources`, and those that are paths are opened here: the monitor opens
    /// nothing.
    ///
    /// # Errors
    /// A file cannot be opened, the disk is not valid, there is no empty slot, another disk has its
    /// id, or the machine has ended.
    pub fn attach_disk(&self, disk: &DiskConfig, resources: Resources) -> Result<(), ControlError> {
        fn refused(error: impl std::error::Error) -> ControlError {
            ControlError::Refused(MonitorError::of(&error))
        }
        let mut disk = disk.clone();
        disk.validate("disk").map_err(refused)?;
        for (field, _, source) in disk.files("disk") {
            *source = source.clone().with_absolute_path(&field).map_err(refused)?;
        }
        let mut handed = resources.handed;
        handed.open_disk(&mut disk).map_err(refused)?;
        let device = NewDevice::Disk { disk, labels: handed.labels };
        self.control.ask(&ControlRequest::Attach { device }, &handed.files)?.done()
    }

    /// Takes a disk, or the entropy device, out of the running machine: when this returns, nothing
    /// of it is held any more, and its slot can be filled again. The guest should have let go of it
    /// before; one that has not finds no device, and what it asked for last is never answered.
    ///
    /// # Errors
    /// The machine has no such device, or has ended.
    pub fn detach(&self, device: &DeviceName) -> Result<(), ControlError> {
        self.control.ask(&ControlRequest::Detach { device: device.clone() }, &[])?.done()
    }

    /// What [`Machine::inspect`] shows of one virtio device.
    ///
    /// # Errors
    /// The machine has no such device, or has ended.
    pub fn inspect_device(&self, device: &DeviceName) -> Result<DeviceState, ControlError> {
        let request = ControlRequest::InspectDevice { device: device.clone() };
        match self.control.ask(&request, &[])?.finish()? {
            (Answer::Device(device), _) => Ok(*device),
            _ => Err(ControlError::Confused),
        }
    }

    /// Asks the guest to have `bytes` of memory in all: `memory_bytes` of the configuration, and up
    /// to `hotplug_bytes` more in steps of 2 MiB. The guest's driver is told and follows as soon as
    /// it can; whether it has, the guest knows.
    ///
    /// # Errors
    /// The machine has ended, has no memory device, or cannot have so many bytes.
    pub fn request_memory(&self, bytes: u64) -> Result<(), ControlError> {
        self.begin_request_memory(bytes)?.done()
    }

    /// The same without waiting for the machine's answer, for which the result can be waited.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn begin_request_memory(&self, bytes: u64) -> Result<Pending, ControlError> {
        self.control.ask(&ControlRequest::Resize { device: DeviceName::Memory, bytes }, &[])
    }

    /// Makes a disk of the machine `bytes` long; what is added reads as zeroes, and is there for
    /// good when this returns. The guest's driver is told, also later of what happened in a pause.
    /// What the guest makes of the room is its own business. A block device of the host must have
    /// become larger before.
    ///
    /// # Errors
    /// The machine has no such disk or has ended, the disk is only read, would become smaller, or
    /// `bytes` are not whole sectors, or the host refuses.
    pub fn resize_disk(&self, disk: &DiskId, bytes: u64) -> Result<(), ControlError> {
        let device = DeviceName::Disk(disk.clone());
        self.control.ask(&ControlRequest::Resize { device, bytes }, &[])?.done()
    }

    /// Changes the limits of a disk's rates from now on, until the machine ends or the guest is
    /// started again, which then has those of its configuration.
    ///
    /// # Errors
    /// The machine has no such disk, or has ended.
    pub fn limit_disk(&self, disk: &DiskId, limits: DiskLimits) -> Result<(), ControlError> {
        self.control.ask(&ControlRequest::LimitDisk { disk: disk.clone(), limits }, &[])?.done()
    }

    /// Readable once the monitor's process has ended, whatever it said before: to be polled beside
    /// everything else that a machine gives out. A monitor that was taken over can leave its ends
    /// of sockets open behind it, in a message that nobody reads; of those nothing is heard. `None`
    /// of a machine in threads, and on a system without such descriptors.
    #[must_use]
    pub fn process_end(&self) -> Option<BorrowedFd<'_>> {
        self.control.process_end()
    }

    /// The number of the monitor's process, when the machine has one of its own and has not ended.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.ending().process_id()
    }
}

impl AsFd for Machine {
    /// Readable once the machine has ended. A monitor that was taken over can make it so before;
    /// [`Machine::wait`] then ends it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.done()
    }
}

#[cfg(test)]
mod tests;

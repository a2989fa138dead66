//! Where a machine says what its guest broke: one line for the first fault of each kind of each
//! device.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::outcome::DeviceFaults;
use super::watched::Watched;
use crate::virtio::fault::DeviceFault;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::spec;
use crate::virtio::tally::{Fault, Tally};

/// Most kinds of faults that are remembered as said. Disks have new names as often as a holder
/// attaches some; what was forgotten is said again.
const SAID_MOST: usize = 1024;

/// Takes the lines. One that nobody reads now is dropped: the loop waits for nobody, and the counts
/// tell anyway.
pub(super) struct FaultLog {
    to: Option<OwnedFd>,
    /// Made of `to` by the first line: most machines never say one. It is not opened again, which a
    /// confined monitor may not.
    open: Option<Watched>,
    /// Slots, devices and kinds that were said, the oldest first.
    said: VecDeque<(u16, String, String)>,
}

impl FaultLog {
    /// Writes to `to`; `None`: nothing is written.
    pub(super) fn new(to: Option<OwnedFd>) -> Self {
        Self { to, open: None, said: VecDeque::new() }
    }

    /// Says a fault, unless one of its kind was said of the device before; `true`: it was new.
    pub(super) fn say(&mut self, fault: &DeviceFaults) -> bool {
        let this = (fault.slot, fault.device.clone(), fault.kind.clone());
        if self.said.contains(&this) {
            return false;
        }
        if self.said.len() >= SAID_MOST {
            self.said.pop_front();
        }
        self.said.push_back(this);
        if let Some(to) = self.to.take() {
            self.open = Some(Watched::shared(to));
        }
        if let Some(open) = &self.open {
            let _nobody_reads = open.write(line(fault).as_bytes());
        }
        true
    }
}

fn line(fault: &DeviceFaults) -> String {
    let DeviceFaults { slot, device, kind, first, count: _ } = fault;
    if kind == DeviceFault::NoRoom.kind() {
        return format!("nelly-monitor: device {slot} ({device}): {first} (told once)\n");
    }
    format!(
        "nelly-monitor: guest fault in device {slot} ({device}): {first}; more of this kind are counted, not told\n"
    )
}

/// What the drivers broke so far, by slot.
pub(super) fn faults(interrupts: &[Interrupt]) -> Vec<DeviceFaults> {
    (0..).zip(interrupts).flat_map(|(slot, interrupt)| faults_of(slot, interrupt.tally())).collect()
}

/// The same of one slot.
pub(super) fn faults_of(slot: u16, tally: &Tally) -> Vec<DeviceFaults> {
    tally.faults().into_iter().map(|fault| named(slot, fault)).collect()
}

/// A fault with its device's name.
pub(super) fn named(slot: u16, fault: Fault) -> DeviceFaults {
    let Fault { device_id, name, kind, first, count } = fault;
    DeviceFaults { slot, device: label(device_id, name.as_deref()), kind: kind.to_owned(), first, count }
}

/// What people call the device: its kind, and a disk's id.
fn label(device_id: u32, name: Option<&str>) -> String {
    let kind = spec::id::name(device_id);
    match name {
        Some(name) => format!("{kind} {name}"),
        None => kind.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn fault() -> DeviceFaults {
        DeviceFaults {
            slot: 1,
            device: "block root".into(),
            kind: "descriptor_index".into(),
            first: "the driver broke a queue: descriptor 64 of 64".into(),
            count: 1,
        }
    }

    #[test]
    fn a_line_names_device_and_reason_and_waits_for_no_reader() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut log = FaultLog::new(Some(near.into()));
        // Far more than the socket holds.
        for n in 0..20_000 {
            let more = DeviceFaults { kind: n.to_string(), ..fault() };
            assert!(log.say(&more));
            assert!(!log.say(&more), "said once");
        }
        assert_eq!(log.said.len(), SAID_MOST);
        let mut bytes = [0; 200];
        far.read_exact(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let wanted = "nelly-monitor: guest fault in device 1 (block root): the driver broke a queue: descriptor 64 of 64; ";
        assert!(text.starts_with(wanted), "{text}");
        assert!(FaultLog::new(None).say(&fault()));
    }
}

//! The bus: address ranges → devices, and the effects an access may have.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arch::Address;
use crate::state::Stateful;

/// What an access asks of the machine. Devices never call upward: they return this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub enum Effect {
    /// Nothing but the access itself.
    #[default]
    None,
    /// The guest switches the machine off.
    PowerOff,
    /// The guest resets the machine.
    Reset,
    /// The device is on its way back from a reset and has not taken the write: it is to be made
    /// again once a worker has come home.
    Again,
}

/// A device on a bus, of memory or of ports. `offset` counts from the start of the device's range.
///
/// An access never blocks, whatever the guest writes: a device that is not ready says
/// [`Effect::Again`]. Widths are 1, 2, 4 or 8 bytes and the bus has checked that `offset +
/// data.len()` lies within the range.
pub trait BusDevice: Send + Stateful {
    /// Fills `data` (little endian). What a device does not implement reads as the device's class
    /// demands (0 or all ones).
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data` (little endian) and says what the machine must do.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect;
}

/// A device on a bus. Its lock is held for one access and never across a wait.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// One range that could not be put on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Empty, or beyond the end of the address space.
    #[error("the range of {len:#x} bytes at {base:#x} is not an address range")]
    Range {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
    },
    /// Another device is there.
    #[error("the range of {len:#x} bytes at {base:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
        /// First address of the device that is there.
        other: u64,
    },
}

/// Address ranges → devices. Built once, then read by every vCPU without a lock of its own.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base, disjoint.
    ranges: Vec<Range>,
    /// Accesses that no device claims.
    unclaimed: AtomicU64,
}

/// The buses of a machine: one for each kind of address.
#[derive(Default)]
pub struct Buses {
    /// What no memory backs.
    pub memory: Bus,
    /// Ports, where the architecture has such.
    pub ports: Bus,
}

impl Buses {
    /// Puts a device at `len` addresses from `base`.
    ///
    /// # Errors
    /// As of [`Bus::insert`].
    pub fn insert(&mut self, base: Address, len: u64, device: SharedDevice) -> Result<(), BusError> {
        match base {
            Address::Memory(base) => self.memory.insert(base, len, device),
            Address::Port(base) => self.ports.insert(base.into(), len, device),
        }
    }

    /// Reads, see [`Bus::read`].
    pub fn read(&self, address: Address, data: &mut [u8]) {
        match address {
            Address::Memory(address) => self.memory.read(address, data),
            Address::Port(port) => self.ports.read(port.into(), data),
        }
    }

    /// Writes, see [`Bus::write`].
    pub fn write(&self, address: Address, data: &[u8]) -> Effect {
        match address {
            Address::Memory(address) => self.memory.write(address, data),
            Address::Port(port) => self.ports.write(port.into(), data),
        }
    }
}

struct Range {
    base: u64,
    len: u64,
    device: SharedDevice,
}

impl Bus {
    /// A bus without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `len` bytes from `base`.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        if len == 0 || base.checked_add(len - 1).is_none() {
            return Err(BusError::Range { base, len });
        }
        let at = self.ranges.partition_point(|range| range.base < base);
        let before = at.checked_sub(1).map(|before| &self.ranges[before]);
        let clash = before
            .filter(|range| base - range.base < range.len)
            .or_else(|| self.ranges.get(at).filter(|range| range.base - base < len));
        if let Some(other) = clash {
            return Err(BusError::Overlap { base, len, other: other.base });
        }
        self.ranges.insert(at, Range { base, len, device });
        Ok(())
    }

    /// Reads. What no device claims whole, and accesses of a width that no processor makes, read as
    /// all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => lock(device).read(offset, data),
            None => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
                data.fill(0xff);
            }
        }
    }

    /// Writes, and says what the machine must do. What no device claims whole is ignored.
    pub fn write(&self, address: u64, data: &[u8]) -> Effect {
        match self.find(address, data.len()) {
            Some((device, offset)) => lock(device).write(offset, data),
            None => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
                Effect::None
            }
        }
    }

    /// Accesses so far that no device claims whole.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    fn find(&self, address: u64, width: usize) -> Option<(&SharedDevice, u64)> {
        let width = match width {
            1 => 1,
            2 => 2,
            4 => 4,
            8 => 8,
            _ => return None,
        };
        let at = self.ranges.partition_point(|range| range.base <= address).checked_sub(1)?;
        let range = &self.ranges[at];
        let offset = address - range.base;
        (offset < range.len && width <= range.len - offset).then_some((&range.device, offset))
    }
}

/// A device whose thread panicked in an access is still a device: its registers hold whatever they
/// held.
fn lock(device: &SharedDevice) -> MutexGuard<'_, dyn BusDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::{Sections, StateError};

    /// Answers with its mark and remembers the last write.
    struct Marked(u8, Option<(u64, usize)>);

    impl BusDevice for Marked {
        fn read(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
            self.1 = Some((offset, data.len()));
            Effect::Reset
        }
    }

    impl Stateful for Marked {
        fn save(&self, name: &str, state: &mut Sections) {
            state.put_fields(name, 1, |fields| fields.put(&self.0));
        }

        fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
            self.0 = state.take_fields(name, 1, |fields| fields.get())?;
            Ok(())
        }
    }

    fn marked(mark: u8) -> Arc<Mutex<Marked>> {
        Arc::new(Mutex::new(Marked(mark, None)))
    }

    #[test]
    fn accesses_find_their_device_or_nobody() {
        let (low, high) = (marked(1), marked(2));
        let mut bus = Bus::new();
        bus.insert(0x100, 8, low.clone()).unwrap();
        bus.insert(u64::MAX - 7, 8, high).unwrap();
        // (address, width, mark read)
        let table = [
            (0xff, 1, 0xff),
            (0x100, 1, 1),
            (0x100, 8, 1),
            (0x107, 1, 1),
            (0x107, 2, 0xff),
            (0x108, 1, 0xff),
            (0x100, 3, 0xff),
            (0x100, 0, 0xff),
            (0x100, 16, 0xff),
            (u64::MAX, 1, 2),
            (u64::MAX, 2, 0xff),
            (0, 8, 0xff),
        ];
        for (address, width, mark) in table {
            let mut data = vec![0; width];
            bus.read(address, &mut data);
            assert_eq!(data, vec![mark; width], "{address:#x} {width}");
            let effect = if mark == 0xff { Effect::None } else { Effect::Reset };
            assert_eq!(bus.write(address, &data), effect, "{address:#x} {width}");
        }
        assert_eq!(low.lock().unwrap().1, Some((7, 1)));
    }

    #[test]
    fn ports_are_no_memory() {
        let mut buses = Buses::default();
        buses.insert(Address::Memory(0x60), 1, marked(1)).unwrap();
        buses.insert(Address::Port(0x60), 1, marked(2)).unwrap();
        for (address, mark) in [
            (Address::Memory(0x60), 1),
            (Address::Port(0x60), 2),
            (Address::Memory(0x61), 0xff),
            (Address::Port(0x61), 0xff),
        ] {
            let mut data = [0];
            buses.read(address, &mut data);
            assert_eq!(data, [mark], "{address:?}");
            let effect = if mark == 0xff { Effect::None } else { Effect::Reset };
            assert_eq!(buses.write(address, &data), effect, "{address:?}");
        }
        assert_eq!((buses.memory.unclaimed(), buses.ports.unclaimed()), (2, 2));
    }

    #[test]
    fn impossible_ranges_are_refused() {
        let mut bus = Bus::new();
        assert_eq!(bus.insert(5, 0, marked(0)), Err(BusError::Range { base: 5, len: 0 }));
        assert!(bus.insert(u64::MAX, 2, marked(0)).is_err());
        bus.insert(0x10, 0x10, marked(0)).unwrap();
        for (base, len) in [(0x10, 1), (0x1f, 1), (0xf, 2), (0, 0x100), (0x10, 0x10), (0x18, 0x100)] {
            let refused = BusError::Overlap { base, len, other: 0x10 };
            assert_eq!(bus.insert(base, len, marked(0)), Err(refused));
        }
        bus.insert(0xf, 1, marked(0)).unwrap();
        bus.insert(0x20, 1, marked(0)).unwrap();
    }

    proptest! {
        #[test]
        fn a_bus_agrees_with_a_list(
            ranges in prop::collection::vec((0u64..64, 1u64..16), 0..12),
            accesses in prop::collection::vec((0u64..80, 1usize..10), 0..40),
        ) {
            let mut bus = Bus::new();
            let mut list: Vec<(u64, u64, u8)> = Vec::new();
            for (mark, (base, len)) in (1u8..).zip(ranges) {
                let free = list.iter().all(|(b, l, _)| base + len <= *b || b + l <= base);
                prop_assert_eq!(bus.insert(base, len, marked(mark)).is_ok(), free);
                if free {
                    list.push((base, len, mark));
                }
            }
            for (address, width) in accesses {
                let end = address + u64::try_from(width).unwrap();
                let owner = list.iter().find(|(b, l, _)| *b <= address && end <= b + l);
                let possible = [1, 2, 4, 8].contains(&width);
                let mark = owner.filter(|_| possible).map_or(0xff, |(_, _, mark)| *mark);
                let mut data = vec![0; width];
                bus.read(address, &mut data);
                prop_assert_eq!(data, vec![mark; width]);
            }
        }
    }
}

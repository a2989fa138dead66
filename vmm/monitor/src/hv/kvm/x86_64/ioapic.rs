//! The I/O APIC of a machine whose local APICs alone are KVM's (Intel 82093AA): a pure state
//! machine from lines and register accesses to messages.
//!
//! KVM's own legacy controllers cost a machine's end more than its whole life may (closing them
//! waits for grace periods of the host's kernel), and a guest without the legacy PIC sets this one
//! up with fewer accesses than that one.

use crate::arch::x86_64::layout;
use crate::sys::fits;

/// Most lines. Guests read and write every one of theirs several times as they start, and each
/// access is an exit: a machine has those that it uses.
pub(super) const PINS: usize = layout::IO_APIC_PINS as usize;
/// Bytes of its registers' page.
const LEN: u64 = 0x1000;
/// The register that the window shows.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Through the window.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;
/// Bits of the id.
const ID_BITS: u32 = 0x0f00_0000;
/// Version 0x11: no EOI register.
const VERSION_VALUE: u32 = 0x11;

/// Bits of a redirection entry.
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS;

/// A message-signalled interrupt as the local APICs take it (Intel manual, volume 3A, 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) address: u32,
    pub(super) data: u32,
}

/// What a write asks of the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// To be delivered.
    pub(super) message: Option<Message>,
    /// The unmasked level-triggered entries changed: the end of their interrupts must be reported
    /// from now on.
    pub(super) levels_changed: bool,
}

#[derive(Debug)]
pub(super) struct IoApic {
    /// Lines that there are, 1 to [`PINS`].
    pins: u32,
    selected: u8,
    id: u32,
    entries: [u64; PINS],
    /// Lines that are up.
    high: [bool; PINS],
}

impl IoApic {
    /// With so many lines, at least one and at most [`PINS`].
    pub(super) fn new(pins: u32) -> Self {
        let pins = pins.clamp(1, layout::IO_APIC_PINS);
        Self { pins, selected: 0, id: 0, entries: [MASKED; PINS], high: [false; PINS] }
    }

    /// So many lines it has.
    pub(super) fn pins(&self) -> u32 {
        self.pins
    }

    /// Its whole state: lines, the register that is selected, the id; then each entry and whether
    /// its line is up.
    pub(super) fn save(&self) -> Vec<u8> {
        let Self { pins, selected, id, entries, high } = self;
        let mut bytes = pins.to_le_bytes().to_vec();
        bytes.push(*selected);
        bytes.extend(id.to_le_bytes());
        for (entry, high) in entries.iter().zip(high) {
            bytes.extend(entry.to_le_bytes());
            bytes.push(u8::from(*high));
        }
        bytes
    }

    /// The same taken back into one of `pins` lines; `None` when it is none of such.
    pub(super) fn load(bytes: &[u8], pins: u32) -> Option<Self> {
        let (found, rest) = bytes.split_first_chunk()?;
        let (selected, rest) = rest.split_first()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (lines, rest) = rest.as_chunks::<9>();
        if u32::from_le_bytes(*found) != pins || lines.len() != PINS || !rest.is_empty() {
            return None;
        }
        let mut apic = Self { selected: *selected, id: u32::from_le_bytes(*id) & ID_BITS, ..Self::new(pins) };
        for (pin, [entry @ .., high]) in lines.iter().enumerate() {
            (apic.entries[pin], apic.high[pin]) = (u64::from_le_bytes(*entry), *high != 0);
        }
        // Nothing could mask a pin that the machine does not have.
        let missing = usize::try_from(pins).ok()?..;
        let silent = apic.entries[missing.clone()].iter().all(|entry| *entry == MASKED);
        (silent && !apic.high[missing].contains(&true)).then_some(apic)
    }

    /// The offset of a guest physical address in the registers' page.
    pub(super) fn offset(address: u64) -> Option<u64> {
        address.checked_sub(layout::IO_APIC).filter(|offset| *offset < LEN)
    }

    /// Reads a register. Anything but a 32-bit read of the two that exist reads as zeros.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            SELECT => u32::from(self.selected),
            WINDOW => self.window(),
            _ => 0,
        };
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, value)| *byte = value);
    }

    fn window(&self) -> u32 {
        match self.selected {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE | (self.pins - 1) << 16,
            _ => self.entry().map_or(0, |(pin, shift)| {
                // Half of an entry.
                fits(self.entries[pin] >> shift & 0xffff_ffff, "half of 64 bits")
            }),
        }
    }

    /// Pin and bit offset of the half entry that is selected.
    fn entry(&self) -> Option<(usize, u32)> {
        let index = self.selected.checked_sub(FIRST_ENTRY)?;
        let pin = index / 2;
        (u32::from(pin) < self.pins).then_some((usize::from(pin), u32::from(index % 2) * 32))
    }

    /// Writes a register. Anything but a 32-bit write of the two that exist is ignored; so are
    /// writes to what is read-only.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Written {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return Written::default() };
        let value = u32::from_le_bytes(bytes);
        match offset {
            SELECT => self.selected = bytes[0],
            WINDOW if self.selected == ID => self.id = value & ID_BITS,
            WINDOW => {
                if let Some((pin, shift)) = self.entry() {
                    return self.set_entry(pin, shift, value);
                }
            }
            _ => {}
        }
        Written::default()
    }

    fn set_entry(&mut self, pin: usize, shift: u32, value: u32) -> Written {
        let before = self.entries[pin];
        let written = before & !(0xffff_ffff << shift) | u64::from(value) << shift;
        let mut after = written & !READ_ONLY | before & READ_ONLY;
        if after & LEVEL == 0 {
            // An edge has no end that anyone waits for. Kernels end a stuck level this way.
            after &= !REMOTE_IRR;
        }
        self.entries[pin] = after;
        let reported = |entry: u64| (entry & (LEVEL | MASKED) == LEVEL).then_some(message(entry));
        Written { message: self.raise_level(pin), levels_changed: reported(before) != reported(after) }
    }

    /// Delivers a level that is up, unmasked and not yet being handled.
    fn raise_level(&mut self, pin: usize) -> Option<Message> {
        let entry = &mut self.entries[pin];
        let due = self.high[pin] && *entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL;
        due.then(|| {
            *entry |= REMOTE_IRR;
            message(*entry)
        })
    }

    /// A line goes up or down. An edge on a masked pin is lost, as it is in hardware.
    pub(super) fn set_line(&mut self, pin: usize, high: bool) -> Option<Message> {
        let was = std::mem::replace(self.high.get_mut(pin)?, high);
        let entry = self.entries[pin];
        if entry & LEVEL != 0 {
            return self.raise_level(pin);
        }
        (high && !was && entry & MASKED == 0).then_some(message(entry))
    }

    /// The guest ended the interrupt `vector`: levels that are still up are due again.
    pub(super) fn end(&mut self, vector: u8) -> Vec<Message> {
        let mut due = Vec::new();
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR && *entry & 0xff == u64::from(vector) {
                *entry &= !REMOTE_IRR;
                due.extend(self.raise_level(pin));
            }
        }
        due
    }

    /// The pins whose interrupts' end must be reported, with their messages.
    pub(super) fn levels(&self) -> Vec<(usize, Message)> {
        let reported = |entry: &&u64| **entry & (LEVEL | MASKED) == LEVEL;
        let entries = self.entries.iter().enumerate();
        entries.filter(|(_, entry)| reported(entry)).map(|(pin, entry)| (pin, message(*entry))).collect()
    }
}

/// Redirection entry to message: destination and its mode to the address; vector, delivery mode and
/// trigger to the data.
fn message(entry: u64) -> Message {
    let bits =
        |at: u32, width: u32| fits::<_, u32>(entry >> at & ((1 << width) - 1), "fields have at most 8 bits");
    let level = bits(15, 1);
    let address = 0xfee0_0000 | bits(56, 8) << 12 | bits(11, 1) << 2;
    Message { address, data: bits(0, 8) | bits(8, 3) << 8 | level << 14 | level << 15 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(apic: &mut IoApic, register: u8, value: u32) -> Written {
        assert_eq!(apic.write(SELECT, &u32::from(register).to_le_bytes()), Written::default());
        apic.write(WINDOW, &value.to_le_bytes())
    }

    fn get(apic: &mut IoApic, register: u8) -> u32 {
        apic.write(SELECT, &u32::from(register).to_le_bytes());
        let mut data = [0xee; 4];
        apic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn starts_masked_and_tells_its_pins() {
        let mut apic = IoApic::new(24);
        assert_eq!(get(&mut apic, 1), 0x0017_0011);
        for pin in 0..24 {
            assert_eq!([get(&mut apic, 0x10 + 2 * pin), get(&mut apic, 0x11 + 2 * pin)], [0x1_0000, 0]);
        }
        assert_eq!([get(&mut apic, 0x40), get(&mut apic, 0xff), get(&mut apic, 5)], [0; 3]);
        put(&mut apic, 0, 0xffff_ffff);
        assert_eq!([get(&mut apic, 0), get(&mut apic, 2)], [0x0f00_0000; 2]);
        put(&mut apic, 1, 0);
        assert_eq!(get(&mut apic, 1), 0x0017_0011);
    }

    #[test]
    fn the_last_pin_is_reached_by_the_last_registers() {
        let mut apic = IoApic::new(u32::MAX);
        assert_eq!(get(&mut apic, 1), 0x0077_0011);
        put(&mut apic, 0xff, 3 << 24);
        put(&mut apic, 0xfe, 0x41);
        assert_eq!([get(&mut apic, 0xfe), get(&mut apic, 0xff)], [0x41, 3 << 24]);
        let sent = Message { address: 0xfee0_3000, data: 0x41 };
        assert_eq!(apic.set_line(119, true), Some(sent));
        assert_eq!(apic.set_line(120, true), None);
        // A pin that the machine does not have cannot be set up.
        let mut apic = IoApic::new(24);
        put(&mut apic, 0x40, 0x41);
        assert_eq!((get(&mut apic, 0x40), apic.set_line(24, true)), (0, None));
    }

    #[test]
    fn an_edge_is_one_message_and_none_while_masked() {
        let mut apic = IoApic::new(24);
        put(&mut apic, 0x1b, 3 << 24);
        assert_eq!(apic.set_line(5, true), None);
        apic.set_line(5, false);
        assert!(!put(&mut apic, 0x1a, 0x0941).levels_changed);
        assert_eq!(apic.set_line(4, true), None);
        let sent = Message { address: 0xfee0_3004, data: 0x141 };
        assert_eq!(apic.set_line(5, true), Some(sent));
        assert_eq!(apic.set_line(5, true), None, "still up");
        assert_eq!(apic.set_line(5, false), None);
        assert_eq!(apic.set_line(5, true), Some(sent));
        assert_eq!(apic.set_line(24, true), None);
    }

    #[test]
    fn a_level_is_delivered_again_until_it_is_down() {
        let mut apic = IoApic::new(24);
        assert!(put(&mut apic, 0x20, 0x8055).levels_changed);
        let sent = Message { address: 0xfee0_0000, data: 0xc055 };
        assert_eq!(apic.levels(), [(8, sent)]);
        assert_eq!(apic.set_line(8, true), Some(sent));
        assert_eq!(get(&mut apic, 0x20), 0xc055, "remote IRR");
        assert_eq!(apic.set_line(8, true), None);
        assert_eq!(apic.end(0x54), []);
        assert_eq!(apic.end(0x55), [sent]);
        apic.set_line(8, false);
        assert_eq!(apic.end(0x55), []);
        assert_eq!(get(&mut apic, 0x20), 0x8055);
        // Masked while up: delivered when unmasked.
        assert!(put(&mut apic, 0x20, 0x1_8055).levels_changed);
        assert_eq!(apic.set_line(8, true), None);
        assert_eq!(put(&mut apic, 0x20, 0x8055), Written { message: Some(sent), levels_changed: true });
        // To an edge and back ends what is being handled.
        put(&mut apic, 0x20, 0x55);
        assert_eq!(get(&mut apic, 0x20), 0x55);
    }

    #[test]
    fn what_is_written_down_goes_on_as_it_was() {
        let mut apic = IoApic::new(9);
        put(&mut apic, 0, 0x0300_0000);
        put(&mut apic, 0x20, 0x8055);
        put(&mut apic, 0x1a, 0x0941);
        apic.set_line(8, true);
        apic.set_line(5, true);
        let bytes = apic.save();
        let mut again = IoApic::load(&bytes, 9).unwrap();
        assert_eq!(again.save(), bytes);
        for apic in [&mut apic, &mut again] {
            assert_eq!((apic.set_line(5, true), apic.set_line(8, true)), (None, None), "both are up");
            assert_eq!(apic.end(0x55).len(), 1);
            assert_eq!(get(apic, 0), 0x0300_0000);
        }
        assert!(IoApic::load(&bytes, 10).is_none() && IoApic::load(&bytes[1..], 9).is_none());
        assert!(IoApic::load(&[&bytes[..], &[0]].concat(), 9).is_none());
        // A pin that it does not have: not masked, or up.
        let last = bytes.len() - 9;
        for (at, value) in [(last + 2, 0), (last + 8, 1)] {
            let mut foreign = bytes.clone();
            foreign[at] = value;
            assert!(IoApic::load(&foreign, 9).is_none(), "{at}");
        }
    }

    proptest! {
        /// Whatever a guest does: no panic, at most as many messages as there are pins, and what is
        /// read-only stays.
        #[test]
        fn hostile_accesses_are_harmless(
            accesses in prop::collection::vec((0u64..0x1100, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..200)
        ) {
            let mut apic = IoApic::new(24);
            for (offset, mut data, write) in accesses {
                // Half of all accesses hit a register that exists.
                let offset = if offset % 2 == 0 { offset & 0x10 } else { offset };
                if write {
                    apic.write(offset, &data);
                } else {
                    apic.read(offset, &mut data);
                }
                apic.set_line(usize::try_from(offset % 128).unwrap(), write);
                prop_assert!(apic.end(data.first().copied().unwrap_or(0)).len() <= PINS);
            }
            prop_assert_eq!(get(&mut apic, 1), 0x0017_0011);
        }
    }
}

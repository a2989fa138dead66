//! Arm's real-time clock (PrimeCell PL031): the time of day. No alarm, no interrupt; writes of the
//! time are ignored: the host's clock is the clock.

use crate::bus::{BusDevice, Effect};
use crate::state::{Sections, StateError, Stateful};
use crate::sys::fits;

/// Data: seconds since 1970.
const DATA: u64 = 0x00;
/// Match, load, control, mask, raw and masked status, clear.
const MATCH: u64 = 0x04;
const LOAD: u64 = 0x08;
const CONTROL: u64 = 0x0c;
/// Control: the clock runs. It always does.
const STARTED: u32 = 1;
/// Who it is, a byte in each word: the part (0x031, made by Arm, revision 0), then that of every
/// PrimeCell.
const IDENTITY: u64 = 0xfe0;
const IDENTITY_BYTES: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The clock; `now` says the seconds since 1970-01-01 00:00:00 UTC.
pub struct Pl031<C> {
    now: C,
    matched: u32,
    load: u32,
}

impl<C: Fn() -> u64 + Send> Pl031<C> {
    /// A clock that shows `now`.
    pub fn new(now: C) -> Self {
        Self { now, matched: 0, load: 0 }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            // The register's 32 bits last until 2106, then begin anew.
            DATA => fits((self.now)() & 0xffff_ffff, "32 bits"),
            MATCH => self.matched,
            LOAD => self.load,
            CONTROL => STARTED,
            IDENTITY..0x1000 => {
                let index = usize::try_from((offset - IDENTITY) / 4).ok();
                index.and_then(|index| IDENTITY_BYTES.get(index)).map_or(0, |byte| u32::from(*byte))
            }
            _ => 0,
        }
    }
}

impl<C: Fn() -> u64 + Send> BusDevice for Pl031<C> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Registers are words; a narrower read sees the lower bytes.
        if offset.is_multiple_of(4) {
            let value = self.register(offset).to_le_bytes();
            data.iter_mut().zip(value).for_each(|(byte, value)| *byte = value);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let Ok(bytes) = <[u8; 4]>::try_from(data) {
            let value = u32::from_le_bytes(bytes);
            match offset {
                MATCH => self.matched = value,
                LOAD => self.load = value,
                _ => {}
            }
        }
        Effect::None
    }
}

/// The time is not among it: a restored clock shows the host's like every other.
impl<C: Fn() -> u64 + Send> Stateful for Pl031<C> {
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { now: _, matched, load } = self;
        state.put_fields(name, 1, |fields| {
            fields.put(matched);
            fields.put(load);
        });
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        (self.matched, self.load) =
            state.take_fields(name, 1, |fields| Ok((fields.get()?, fields.get()?)))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::testing::{carry, refuses_damage};

    fn word(clock: &mut Pl031<impl Fn() -> u64 + Send>, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        clock.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn shows_the_hosts_time_whatever_is_written() {
        let mut clock = Pl031::new(|| 0x1_6000_0001);
        assert_eq!(word(&mut clock, 0), 0x6000_0001);
        for offset in (0..0x1000).step_by(4) {
            assert_eq!(clock.write(offset, &[9, 0, 0, 0]), Effect::None);
        }
        assert_eq!(
            [0, 4, 8, 0xc, 0x10, 0x14, 0x18].map(|at| word(&mut clock, at)),
            [0x6000_0001, 9, 9, 1, 0, 0, 0]
        );
    }

    #[test]
    fn says_what_it_is_and_nothing_beyond() {
        let mut clock = Pl031::new(|| 0);
        let words: Vec<u32> = (0xfe0..0x1000).step_by(4).map(|at| word(&mut clock, at)).collect();
        assert_eq!(words, [0x31, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!((word(&mut clock, 2), word(&mut clock, 0xff1), word(&mut clock, 0x20)), (0, 0, 0));
        let mut wide = [7; 8];
        clock.read(0xfe0, &mut wide);
        assert_eq!(wide, [0x31, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn registers_are_restored_and_the_time_is_the_hosts(
            writes in prop::collection::vec((0u64..8, any::<u32>()), 0..20),
        ) {
            let (mut saved, mut restored) = (Pl031::new(|| 1), Pl031::new(|| 2));
            for (register, value) in writes {
                let _ = saved.write(register * 4, &value.to_le_bytes());
            }
            carry(&saved, &mut restored).unwrap();
            refuses_damage(&saved, || Pl031::new(|| 2), |_| {});
            for at in (4..0x1000).step_by(4) {
                prop_assert_eq!(word(&mut saved, at), word(&mut restored, at));
            }
            prop_assert_eq!(word(&mut restored, 0), 2);
        }
    }
}

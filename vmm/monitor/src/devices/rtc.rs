//! The CMOS clock (MC146818 at ports 0x70 and 0x71): time of day and 114 bytes of memory. No alarm,
//! no interrupt; writes of the time are ignored: the host's clock is the clock.

use crate::bus::{BusDevice, Effect};
use crate::state::{Sections, StateError, Stateful};
use crate::sys::fits;

/// First port.
pub const PORT: u16 = 0x70;
/// Ports: index and data.
pub const PORTS: u64 = 2;

/// Register A: no update in progress ever, 32,768 Hz, 1,024 Hz rate.
const REGISTER_A: u8 = 0x26;
/// Register B: 24 hours, binary-coded decimal.
const REGISTER_B: u8 = 0x02;
/// Register D: memory and time are valid.
const REGISTER_D: u8 = 0x80;
/// Where PCs keep the century, and where an ACPI FADT points to.
const CENTURY: u8 = 0x32;

/// The clock; `now` says the seconds since 1970-01-01 00:00:00 UTC.
pub struct Rtc<C> {
    now: C,
    index: u8,
    memory: [u8; 128],
}

impl<C: Fn() -> u64 + Send> Rtc<C> {
    /// A clock that shows `now`.
    pub fn new(now: C) -> Self {
        Self { now, index: 0, memory: [0; 128] }
    }

    fn read_data(&self) -> u8 {
        let time = || Time::of((self.now)());
        match self.index {
            0x00 => bcd(time().second),
            0x02 => bcd(time().minute),
            0x04 => bcd(time().hour),
            0x06 => bcd(time().weekday),
            0x07 => bcd(time().day),
            0x08 => bcd(time().month),
            0x09 => bcd(time().year % 100),
            CENTURY => bcd(time().year / 100),
            0x0a => REGISTER_A,
            0x0b => REGISTER_B,
            0x0c => 0,
            0x0d => REGISTER_D,
            index => self.memory[usize::from(index)],
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.index {
            0x00..=0x0d | CENTURY => {}
            index => self.memory[usize::from(index)] = value,
        }
    }
}

impl<C: Fn() -> u64 + Send> BusDevice for Rtc<C> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            // The index register cannot be read on a PC.
            *byte = if offset == 1 { self.read_data() } else { 0xff };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let [value] = *data {
            match offset {
                // The upper bit masks the NMI.
                0 => self.index = value & 0x7f,
                _ => self.write_data(value),
            }
        }
        Effect::None
    }
}

/// The time is not among it: a restored clock shows the host's like every other.
impl<C: Fn() -> u64 + Send> Stateful for Rtc<C> {
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { now: _, index, memory } = self;
        state.put_fields(name, 1, |fields| {
            fields.put(index);
            fields.put(memory);
        });
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let (index, memory) = state.take_fields(name, 1, |fields| Ok((fields.get()?, fields.get()?)))?;
        if usize::from(index) >= self.memory.len() {
            return Err(StateError::unfit(name, format!("there is no register {index:#x}")));
        }
        (self.index, self.memory) = (index, memory);
        Ok(())
    }
}

fn bcd(value: u64) -> u8 {
    fits(((value / 10 % 10) << 4) | (value % 10), "two decimal digits")
}

/// A moment in the Gregorian calendar, UTC.
struct Time {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Time {
    fn of(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Counted from 1 March of year 0, so that the leap day ends its year and its four
        // centuries.
        let shifted = days + 719_468;
        let (era, in_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
        let day_of_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March have 153 days in five.
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day,
            weekday: (days + 4) % 7 + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::testing::{carry, refuses_damage};

    fn read(rtc: &mut Rtc<impl Fn() -> u64 + Send>, index: u8) -> u8 {
        assert_eq!(rtc.write(0, &[index]), Effect::None);
        let mut data = [0];
        rtc.read(1, &mut data);
        data[0]
    }

    #[test]
    fn shows_the_calendar() {
        // (Unix time, century, year, month, day, weekday, hour, minute, second), as `date -u`
        // prints them.
        let table = [
            (0, [0x19, 0x70, 0x01, 0x01, 5, 0x00, 0x00, 0x00]),
            (951_782_399, [0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59]),
            (951_782_400, [0x20, 0x00, 0x02, 0x29, 3, 0x00, 0x00, 0x00]),
            (1_795_392_896, [0x20, 0x26, 0x11, 0x23, 2, 0x00, 0x14, 0x56]),
            (4_107_542_399, [0x21, 0x00, 0x02, 0x28, 1, 0x23, 0x59, 0x59]),
            (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 2, 0x00, 0x00, 0x00]),
        ];
        for (now, expected) in table {
            let mut rtc = Rtc::new(move || now);
            let shown = [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].map(|index| read(&mut rtc, index));
            assert_eq!(shown, expected, "{now}");
        }
    }

    #[test]
    fn never_updates_and_never_loses_power() {
        let mut rtc = Rtc::new(|| 0);
        for index in [0x0a, 0x8a] {
            assert_eq!(read(&mut rtc, index) & 0x80, 0);
        }
        assert_eq!(read(&mut rtc, 0x0d), 0x80);
    }

    #[test]
    fn remembers_memory_but_not_the_time() {
        let mut rtc = Rtc::new(|| 1);
        for index in 0..128 {
            assert_eq!(rtc.write(0, &[index]), Effect::None);
            assert_eq!(rtc.write(1, &[0x99]), Effect::None);
        }
        assert_eq!((read(&mut rtc, 0), read(&mut rtc, 0x0e), read(&mut rtc, 0x7f)), (1, 0x99, 0x99));
        let mut wide = [7; 2];
        rtc.read(0, &mut wide);
        assert_eq!(wide, [0, 0]);
    }

    proptest! {
        #[test]
        fn memory_is_restored_and_the_time_is_the_hosts(
            writes in prop::collection::vec((0u64..2, any::<u8>()), 0..60),
            index in any::<u8>(),
        ) {
            let (mut saved, mut restored) = (Rtc::new(|| 59), Rtc::new(|| 61));
            for (port, value) in writes {
                let _ = saved.write(port, &[value]);
            }
            let _ = saved.write(0, &[index]);
            carry(&saved, &mut restored).unwrap();
            // The register that was selected, before another is.
            let (mut before, mut after) = ([0], [0]);
            saved.read(1, &mut before);
            restored.read(1, &mut after);
            prop_assert!(after == before || index & 0x7f <= 2);
            for index in 3..128 {
                prop_assert_eq!(read(&mut saved, index), read(&mut restored, index));
            }
            prop_assert_eq!((read(&mut saved, 0), read(&mut restored, 0)), (0x59, 0x01));
        }
    }

    #[test]
    fn damaged_state_is_refused() {
        refuses_damage(&Rtc::new(|| 0), || Rtc::new(|| 0), |rtc| rtc.read(1, &mut [0]));
    }
}

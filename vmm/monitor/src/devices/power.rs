//! Registers that switch off or reset: ACPI's sleep and reset registers, the chipset's reset
//! control, the fast reset of port 0x92.

use crate::arch::x86_64::layout::{ACPI_RESET_VALUE, ACPI_SLEEP_TYPE_S5};
use crate::bus::{BusDevice, Effect};
use crate::state::{Sections, StateError, Stateful};

/// Ports of [`AcpiPower`], from the sleep control register on.
pub const ACPI_PORTS: u64 = 3;
/// The chipset's reset control register.
pub const RESET_CONTROL: u16 = 0xcf9;
/// System control port A.
pub const SYSTEM_CONTROL_A: u16 = 0x92;

/// Sleep enable, in the sleep control register (ACPI 6.5, table 4.20).
const SLEEP_ENABLE: u8 = 0x20;

/// Sleep control, sleep status and reset (ACPI 6.5, 4.8.3.6 and 4.8.3.7).
#[derive(Debug, Default)]
pub struct AcpiPower;

impl BusDevice for AcpiPower {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Never woken up, nothing pending.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data) {
            (0, [value]) if value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == ACPI_SLEEP_TYPE_S5 => {
                Effect::PowerOff
            }
            (2, [ACPI_RESET_VALUE]) => Effect::Reset,
            _ => Effect::None,
        }
    }
}

/// Nothing is remembered.
impl Stateful for AcpiPower {
    fn save(&self, name: &str, state: &mut Sections) {
        state.put_fields(name, 1, |_| {});
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        state.take_fields(name, 1, |_| Ok(()))
    }
}

/// One register whose bit `mask` resets the processor.
#[derive(Debug)]
pub struct ResetRegister {
    value: u8,
    mask: u8,
}

impl ResetRegister {
    /// Port 0xcf9: bit 2 resets.
    #[must_use]
    pub fn chipset() -> Self {
        Self { value: 0, mask: 0x04 }
    }

    /// Port 0x92: bit 0 resets, bit 1 is the open gate A20.
    #[must_use]
    pub fn system_control() -> Self {
        Self { value: 0x02, mask: 0x01 }
    }
}

impl BusDevice for ResetRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            *byte = self.value;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        let [value] = *data else { return Effect::None };
        self.value = value & !self.mask;
        if value & self.mask != 0 { Effect::Reset } else { Effect::None }
    }
}

impl Stateful for ResetRegister {
    fn save(&self, name: &str, state: &mut Sections) {
        // Which bit resets is how it was made.
        let Self { value, mask: _ } = self;
        state.put_fields(name, 1, |fields| fields.put(value));
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let value: u8 = state.take_fields(name, 1, |fields| fields.get())?;
        if value & self.mask != 0 {
            return Err(StateError::unfit(name, "the bit that resets never stays set"));
        }
        self.value = value;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::{carry, refuses_damage};

    #[test]
    fn only_soft_off_switches_off_and_only_the_reset_value_resets() {
        for value in 0..=255u8 {
            let off = value & 0x20 != 0 && value & 0x1c == 5 << 2;
            let expected = if off { Effect::PowerOff } else { Effect::None };
            assert_eq!(AcpiPower.write(0, &[value]), expected, "{value:#x}");
            assert_eq!(AcpiPower.write(1, &[value]), Effect::None);
            let expected = if value == 1 { Effect::Reset } else { Effect::None };
            assert_eq!(AcpiPower.write(2, &[value]), expected);
        }
        assert_eq!(AcpiPower.write(0, &[0x34, 0]), Effect::None);
        let mut status = [9];
        AcpiPower.read(1, &mut status);
        assert_eq!(status, [0]);
    }

    #[test]
    fn reset_registers_keep_the_rest() {
        let mut chipset = ResetRegister::chipset();
        assert_eq!(chipset.write(0, &[0x02]), Effect::None);
        assert_eq!(chipset.write(0, &[0x06]), Effect::Reset);
        let mut value = [0];
        chipset.read(0, &mut value);
        assert_eq!(value, [0x02]);
        let mut control = ResetRegister::system_control();
        control.read(0, &mut value);
        assert_eq!(
            (value, control.write(0, &[2]), control.write(0, &[3])),
            ([2], Effect::None, Effect::Reset)
        );
    }

    #[test]
    fn registers_are_restored_as_they_were() {
        carry(&AcpiPower, &mut AcpiPower).unwrap();
        refuses_damage(&AcpiPower, || AcpiPower, |_| {});
        for make in [ResetRegister::chipset, ResetRegister::system_control] {
            for value in 0..=255 {
                let (mut saved, mut restored) = (make(), make());
                let _ = saved.write(0, &[value]);
                carry(&saved, &mut restored).unwrap();
                let (mut before, mut after) = ([0], [0]);
                saved.read(0, &mut before);
                restored.read(0, &mut after);
                assert_eq!(after, before);
            }
            refuses_damage(&make(), make, |register| assert_eq!(register.value & register.mask, 0));
        }
    }
}

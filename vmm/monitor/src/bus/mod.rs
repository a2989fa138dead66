//! The bus: address ranges → devices, and the effects an access may have.

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
}

/// A device on the port I/O or MMIO bus. `offset` counts from the start of the device's range.
///
/// An access never blocks, whatever the guest writes; widths are 1, 2, 4 or 8 bytes and the bus has checked that
/// `offset + data.len()` lies within the range.
pub trait BusDevice: Send {
    /// Fills `data` (little endian). What a device does not implement reads as the device's class demands (0 or all ones).
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data` (little endian) and says what the machine must do.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect;
}

//! A 16550A serial port.
//!
//! The line behind it is as fast as the host's reader: a byte is gone when it is written, unless
//! the host has no room, and then the transmitter holds (THRE clear) until it has. Input waits on
//! the line until the guest asserts RTS or enables the receive interrupt, as with hardware flow
//! control, so that nothing typed ahead falls to the driver that clears the port when it opens it.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::bus::{BusDevice, Effect};
use crate::hv::SharedLine;
use crate::state::fields::stateful_fields;
use crate::state::{Sections, StateError, Stateful};

/// Bytes of the port's register range.
pub const REGISTERS: u64 = 8;

/// Most bytes of input that wait in the device.
pub const INPUT_CAPACITY: usize = 1024;

/// Interrupt enable: received data.
const IER_RDI: u8 = 0x01;
/// Interrupt enable: transmitter empty.
const IER_THRI: u8 = 0x02;
/// Interrupt enable: the four interrupts that a 16550A has.
const IER_ALL: u8 = 0x0f;
/// Interrupt identification: nothing pending.
const IIR_NONE: u8 = 0x01;
/// Transmitter empty.
const IIR_THRI: u8 = 0x02;
/// Received data, at or over the trigger level.
const IIR_RDI: u8 = 0x04;
/// Received data under the trigger level.
const IIR_TIMEOUT: u8 = 0x0c;
/// Both FIFO bits: FIFOs are on.
const IIR_FIFO: u8 = 0xc0;
/// FIFO control: on.
const FCR_ENABLE: u8 = 0x01;
/// Line control: registers 0 and 1 are the divisor.
const LCR_DLAB: u8 = 0x80;
/// Modem control: request to send.
const MCR_RTS: u8 = 0x02;
/// Modem control: loopback.
const MCR_LOOP: u8 = 0x10;
/// Modem control: what a 16550A has.
const MCR_ALL: u8 = 0x1f;
/// Line status: received data.
const LSR_DATA: u8 = 0x01;
/// Line status: transmitter holding register and shift register empty.
const LSR_EMPTY: u8 = 0x60;
/// Modem status without loopback: carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// The host at the other end of the line. Called on vCPU threads, with the port's lock held: never
/// waits.
pub trait Line: Send {
    /// Whether the host takes another byte now.
    fn ready(&self) -> bool;

    /// Takes a byte. A guest may write when [`Line::ready`] is false: then what is beyond the
    /// host's bounds is counted as lost.
    fn transmit(&mut self, byte: u8);

    /// The guest has taken input and there is room for more.
    fn input_wanted(&mut self);
}

/// The port.
pub struct Serial<L> {
    line: L,
    interrupt: SharedLine,
    registers: Registers,
    /// Received and not yet read, in loopback too.
    input: VecDeque<u8>,
    /// The transmitter became empty and the guest was not told, or not by IIR yet.
    empty_pending: bool,
    /// Input was refused for lack of room, so the host must hear when there is room again.
    starved: bool,
}

/// What a guest can set.
#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
}

stateful_fields!(Registers { interrupt_enable, fifo_control, line_control, modem_control, scratch, divisor });

impl<L: Line> Serial<L> {
    /// A port after reset, at 9600 baud.
    pub fn new(line: L, interrupt: SharedLine) -> Self {
        let registers = Registers { divisor: [12, 0], ..Registers::default() };
        Self { line, interrupt, registers, input: VecDeque::new(), empty_pending: false, starved: false }
    }

    /// Puts input on the line, as much as there is room for, and says how much that was. When it is
    /// not all, [`Line::input_wanted`] is called once there is room.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let before = self.identification();
        let count = bytes.len().min(INPUT_CAPACITY.saturating_sub(self.input.len()));
        self.input.extend(&bytes[..count]);
        self.starved |= count < bytes.len() || self.input.len() == INPUT_CAPACITY;
        self.interrupt_on_change(before);
        count
    }

    /// The host has room again after [`Line::ready`] was false.
    pub fn drained(&mut self) {
        // The host made room before it says so here: the step has happened, and a second edge does
        // no harm.
        self.empty_pending = true;
        self.interrupt_on_change(IIR_NONE);
    }

    fn looped(&self) -> bool {
        self.registers.modem_control & MCR_LOOP != 0
    }

    /// Whether the guest sees what is on the line.
    fn open(&self) -> bool {
        self.registers.modem_control & (MCR_RTS | MCR_LOOP) != 0
            || self.registers.interrupt_enable & IER_RDI != 0
    }

    fn has_data(&self) -> bool {
        self.open() && !self.input.is_empty()
    }

    fn can_transmit(&self) -> bool {
        self.looped() || self.line.ready()
    }

    /// The interrupt of the highest priority, without the FIFO bits.
    fn identification(&self) -> u8 {
        let Registers { interrupt_enable, fifo_control, .. } = self.registers;
        if interrupt_enable & IER_RDI != 0 && self.has_data() {
            let trigger = match (fifo_control & FCR_ENABLE, fifo_control >> 6) {
                (0, _) | (_, 0) => 1,
                (_, 1) => 4,
                (_, 2) => 8,
                _ => 14,
            };
            if self.input.len() >= trigger { IIR_RDI } else { IIR_TIMEOUT }
        } else if interrupt_enable & IER_THRI != 0 && self.empty_pending && self.can_transmit() {
            IIR_THRI
        } else {
            IIR_NONE
        }
    }

    /// An edge for every step from nothing pending to something.
    fn interrupt_on_change(&self, before: u8) {
        if before == IIR_NONE && self.identification() != IIR_NONE {
            // A line that fails is the host's fault and shows elsewhere; the guest polls after a
            // while.
            let _unheard = self.interrupt.pulse();
        }
    }

    fn take_input(&mut self) -> u8 {
        if !self.has_data() {
            return 0;
        }
        let byte = self.input.pop_front().unwrap_or(0);
        if self.starved && self.input.len() <= INPUT_CAPACITY / 2 {
            self.starved = false;
            self.line.input_wanted();
        }
        byte
    }

    fn transmit(&mut self, byte: u8) {
        if self.looped() {
            if self.input.len() < INPUT_CAPACITY {
                self.input.push_back(byte);
            }
        } else {
            self.line.transmit(byte);
        }
        self.empty_pending = true;
    }

    fn modem_status(&self) -> u8 {
        if !self.looped() {
            return MSR_CONNECTED;
        }
        // Loopback wires DTR to DSR, RTS to CTS, OUT1 to RI and OUT2 to DCD.
        let control = self.registers.modem_control;
        (control & 0x01) << 5 | (control & 0x02) << 3 | (control & 0x04) << 4 | (control & 0x08) << 4
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let divisor = self.registers.line_control & LCR_DLAB != 0;
        match offset {
            0 if divisor => self.registers.divisor[0],
            1 if divisor => self.registers.divisor[1],
            0 => self.take_input(),
            1 => self.registers.interrupt_enable,
            2 => {
                let identification = self.identification();
                if identification == IIR_THRI {
                    self.empty_pending = false;
                }
                let fifo = self.registers.fifo_control & FCR_ENABLE != 0;
                identification | if fifo { IIR_FIFO } else { 0 }
            }
            3 => self.registers.line_control,
            4 => self.registers.modem_control,
            5 => {
                let data = if self.has_data() { LSR_DATA } else { 0 };
                data | if self.can_transmit() { LSR_EMPTY } else { 0 }
            }
            6 => self.modem_status(),
            7 => self.registers.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let divisor = self.registers.line_control & LCR_DLAB != 0;
        match offset {
            0 if divisor => self.registers.divisor[0] = value,
            1 if divisor => self.registers.divisor[1] = value,
            0 => self.transmit(value),
            1 => {
                let enabled = value & !self.registers.interrupt_enable;
                self.registers.interrupt_enable = value & IER_ALL;
                if enabled & IER_THRI != 0 {
                    self.empty_pending = true;
                }
            }
            // Clearing the receive FIFO takes nothing: what the guest has not seen is still on the
            // line.
            2 => self.registers.fifo_control = value,
            3 => self.registers.line_control = value,
            4 => self.registers.modem_control = value & MCR_ALL,
            7 => self.registers.scratch = value,
            _ => {}
        }
    }
}

impl<L: Line> BusDevice for Serial<L> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let before = self.identification();
        // A wide access reads neighbouring registers, as the ISA bus splits it.
        for (offset, byte) in (offset..).zip(data) {
            *byte = self.read_register(offset);
        }
        self.interrupt_on_change(before);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let before = self.identification();
        for (offset, byte) in (offset..).zip(data) {
            self.write_register(offset, *byte);
        }
        self.interrupt_on_change(before);
        Effect::None
    }
}

/// What the host has not taken yet is the line's, and not among it. So a guest that waited for the
/// transmitter may be restored to a line that has room, and hears of it by [`Serial::drained`]:
/// whoever restores a port calls that once the machine goes on.
impl<L: Line> Stateful for Serial<L> {
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { line: _, interrupt: _, registers, input, empty_pending, starved } = self;
        state.put_fields(name, 1, |fields| {
            fields.put(registers);
            fields.put_list(input.iter());
            fields.put(empty_pending);
            fields.put(starved);
        });
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        state.take_fields(name, 1, |fields| {
            let registers: Registers = fields.get()?;
            if registers.interrupt_enable & !IER_ALL != 0 || registers.modem_control & !MCR_ALL != 0 {
                return Err(fields.unfit("a register has bits that a 16550A has not"));
            }
            self.registers = registers;
            self.input = fields.get_list(INPUT_CAPACITY)?.into();
            self.empty_pending = fields.get()?;
            self.starved = fields.get()?;
            Ok(())
        })
    }
}

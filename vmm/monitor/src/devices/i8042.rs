//! What is left of the keyboard controller: no keyboard, no mouse, but its commands answer, its
//! status settles, and it resets.

use crate::bus::{BusDevice, Effect};
use crate::state::fields::stateful_fields;
use crate::state::{Sections, StateError, Stateful};

/// First port: data. The status and command port is 4 above.
pub const PORT: u16 = 0x60;
/// Ports from the first to the last.
pub const PORTS: u64 = 5;

/// Status: the output buffer holds a byte.
const STATUS_OUTPUT: u8 = 0x01;
/// Status: the self test passed.
const STATUS_SYSTEM: u8 = 0x04;
/// Status: the last write was a command.
const STATUS_COMMAND: u8 = 0x08;
/// Status: the keyboard did not answer.
const STATUS_TIMEOUT: u8 = 0x40;
/// Output port: the processor is not in reset, gate A20 is open.
const OUTPUT_PORT: u8 = 0x03;
/// Output port: the processor runs.
const OUTPUT_RUN: u8 = 0x01;

/// The controller. Ports 0x60 to 0x64, of which 0x61 is the speaker's and the refresh toggle.
#[derive(Debug, Default)]
pub struct I8042 {
    output: Option<u8>,
    /// The command whose parameter comes next.
    pending: Option<u8>,
    configuration: u8,
    output_port: u8,
    last_was_command: bool,
    timed_out: bool,
    refresh: bool,
}

impl I8042 {
    /// A controller after its self test, without interrupts.
    #[must_use]
    pub fn new() -> Self {
        Self { configuration: 0x04, output_port: OUTPUT_PORT, ..Self::default() }
    }

    fn answer(&mut self, byte: u8) {
        self.output = Some(byte);
        self.timed_out = false;
    }

    fn command(&mut self, command: u8) -> Effect {
        self.last_was_command = true;
        self.pending = None;
        match command {
            0x20..=0x3f => self.answer(if command == 0x20 { self.configuration } else { 0 }),
            // The controller passes.
            0xaa => self.answer(0x55),
            // The keyboard's lines are in order, although nothing hangs on them; the mouse port's
            // clock is stuck: there is none.
            0xab => self.answer(0x00),
            0xa9 => self.answer(0x01),
            0xc0 => self.answer(0x00),
            0xd0 => self.answer(self.output_port),
            // Those that take a parameter: configuration and memory, output port, buffers, mouse.
            0x60..=0x7f | 0xd1..=0xd4 => self.pending = Some(command),
            // Pulses of the output port's lower bits; bit 0 is the processor's reset.
            0xf0..=0xff if command & OUTPUT_RUN == 0 => return Effect::Reset,
            _ => {}
        }
        Effect::None
    }

    fn data(&mut self, value: u8) -> Effect {
        self.last_was_command = false;
        match self.pending.take() {
            Some(0x60) => self.configuration = value,
            Some(0xd1) => {
                self.output_port = value;
                if value & OUTPUT_RUN == 0 {
                    return Effect::Reset;
                }
            }
            Some(0xd2) => self.answer(value),
            Some(0xd3) => self.answer(0x00),
            Some(0x61..=0x7f) => {}
            // To the keyboard or the mouse, of which there is none: the controller says so for
            // them.
            Some(_) | None => {
                self.output = Some(0xfe);
                self.timed_out = true;
            }
        }
        Effect::None
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_SYSTEM;
        if self.output.is_some() {
            status |= STATUS_OUTPUT | if self.timed_out { STATUS_TIMEOUT } else { 0 };
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let [byte] = data else { return };
        *byte = match offset {
            0 => self.output.take().unwrap_or(0),
            1 => {
                // Refresh toggles at each look; timer 2 is always done. Loops that wait for either
                // end.
                self.refresh = !self.refresh;
                0x20 | if self.refresh { 0x10 } else { 0 }
            }
            4 => self.status(),
            _ => 0xff,
        };
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data) {
            (0, [value]) => self.data(*value),
            (4, [value]) => self.command(*value),
            _ => Effect::None,
        }
    }
}

stateful_fields!(I8042 { output, pending, configuration, output_port, last_was_command, timed_out, refresh });

impl Stateful for I8042 {
    fn save(&self, name: &str, state: &mut Sections) {
        state.put_fields(name, 1, |fields| fields.put(self));
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        *self = state.take_fields(name, 1, |fields| fields.get())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::testing::{carry, refuses_damage};

    fn get(device: &mut I8042, port: u16) -> u8 {
        let mut data = [0];
        device.read(u64::from(port - PORT), &mut data);
        data[0]
    }

    fn put(device: &mut I8042, port: u16, value: u8) -> Effect {
        device.write(u64::from(port - PORT), &[value])
    }

    #[test]
    fn every_way_to_reset_resets_and_nothing_else_does() {
        for command in 0..=255 {
            let mut device = I8042::new();
            let resets = command >= 0xf0 && command % 2 == 0;
            let expected = if resets { Effect::Reset } else { Effect::None };
            assert_eq!(put(&mut device, 0x64, command), expected, "{command:#x}");
        }
        let mut device = I8042::new();
        assert_eq!(put(&mut device, 0x64, 0xd1), Effect::None);
        assert_eq!(put(&mut device, 0x60, 0x03), Effect::None);
        assert_eq!(put(&mut device, 0x60, 0x02), Effect::None);
        assert_eq!(put(&mut device, 0x64, 0xd1), Effect::None);
        assert_eq!(put(&mut device, 0x60, 0x02), Effect::Reset);
        assert_eq!(device.write(4, &[0xfe, 0xfe]), Effect::None);
    }

    #[test]
    fn commands_answer_and_the_status_settles() {
        let mut device = I8042::new();
        // (command, parameter, answer)
        let table = [
            (0x20, None, Some(0x04)),
            (0x60, Some(0x47), None),
            (0x20, None, Some(0x47)),
            (0xaa, None, Some(0x55)),
            (0xab, None, Some(0x00)),
            (0xa9, None, Some(0x01)),
            (0xd0, None, Some(0x03)),
            (0xd3, Some(0x5a), Some(0x00)),
            (0xd4, Some(0xf2), Some(0xfe)),
            (0xae, None, None),
        ];
        for (command, parameter, answer) in table {
            assert_eq!(put(&mut device, 0x64, command), Effect::None);
            assert_eq!(get(&mut device, 0x64) & 0x0a, 0x08);
            if let Some(parameter) = parameter {
                assert_eq!(put(&mut device, 0x60, parameter), Effect::None);
            }
            assert_eq!(get(&mut device, 0x64) & 0x03, u8::from(answer.is_some()), "{command:#x}");
            if let Some(answer) = answer {
                assert_eq!(get(&mut device, 0x60), answer, "{command:#x}");
            }
            assert_eq!(get(&mut device, 0x64) & 0x03, 0);
        }
        assert_eq!(put(&mut device, 0x60, 0xff), Effect::None);
        assert_eq!((get(&mut device, 0x64) & 0x41, get(&mut device, 0x60)), (0x41, 0xfe));
    }

    #[test]
    fn port_61_toggles_and_its_timer_is_done() {
        let mut device = I8042::new();
        let (first, second) = (get(&mut device, 0x61), get(&mut device, 0x61));
        assert_eq!((first ^ second, first & 0x20), (0x10, 0x20));
        assert_eq!((get(&mut device, 0x62), put(&mut device, 0x61, 0xff)), (0xff, Effect::None));
    }

    proptest! {
        #[test]
        fn goes_on_where_the_saved_one_was(
            before in prop::collection::vec((any::<bool>(), 0u64..5, any::<u8>()), 0..30),
            after in prop::collection::vec((any::<bool>(), 0u64..5, any::<u8>()), 1..30),
        ) {
            let access = |device: &mut I8042, (write, offset, value)| {
                let mut byte = [value];
                let effect = if write { Some(device.write(offset, &byte)) } else { None };
                if !write {
                    device.read(offset, &mut byte);
                }
                (effect, byte)
            };
            let mut device = I8042::new();
            for step in before {
                access(&mut device, step);
            }
            refuses_damage(&device, I8042::new, |_| {});
            let mut restored = I8042::new();
            carry(&device, &mut restored).unwrap();
            for step in after {
                prop_assert_eq!(access(&mut device, step), access(&mut restored, step));
            }
        }
    }
}

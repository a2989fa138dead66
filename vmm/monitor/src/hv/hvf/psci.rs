//! The firmware that a guest calls (PSCI 1.1, Arm DEN 0022, by SMCCC 1.1, Arm DEN 0028): the power
//! of processors and of the machine. Pure: what the processors are and a call, to an answer. KVM
//! has its own.

use crate::arch::aarch64::affinity;

/// A processor's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    /// Off until another switches it on.
    Off,
    /// Switched on; it has not begun.
    Pending(Start),
    /// Runs.
    On,
}

/// Where a processor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Its first instruction, guest physical.
    pub(super) entry: u64,
    /// X0 there.
    pub(super) context: u64,
}

/// A call: the function's number in W0, arguments in X1 to X3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) function: u32,
    pub(super) arguments: [u64; 3],
}

/// What becomes of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It goes on, with this in X0.
    Return(i64),
    /// The same, and a processor was switched on, which is to be woken.
    Started,
    /// It waits like WFI, then goes on with success.
    Suspend,
    /// It is off, and never returns from the call.
    Off,
    /// The machine powers off.
    PowerOff,
    /// The machine starts again.
    Reset,
}

const SUCCESS: i64 = 0;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INVALID_ADDRESS: i64 = -9;

/// Set in the number of a function with 64-bit arguments.
const WIDE: u32 = 1 << 30;
/// Version 1.1, of both the interface and the calling convention.
const VERSION: i64 = 0x1_0001;

const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000a;
const SYSTEM_RESET2: u32 = 0x8400_0012;

/// The fields of MPIDR_EL1 that name a processor.
const AFFINITY_FIELDS: u64 = 0xff_00ff_ffff;

/// The processors of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cores(Vec<Power>);

impl Cores {
    /// `count` processors that are off.
    pub(super) fn off(count: usize) -> Self {
        Self(vec![Power::Off; count])
    }

    /// A processor's power; off if there is no such.
    pub(super) fn power(&self, index: usize) -> Power {
        self.0.get(index).copied().unwrap_or(Power::Off)
    }

    /// Makes room for a processor that is off.
    pub(super) fn add(&mut self, index: usize) {
        if self.0.len() <= index {
            self.0.resize(index + 1, Power::Off);
        }
    }

    /// The boot processor runs from the start.
    pub(super) fn boot(&mut self, index: usize) {
        if let Some(power) = self.0.get_mut(index) {
            *power = Power::On;
        }
    }

    /// If the processor was switched on, it begins now.
    pub(super) fn begin(&mut self, index: usize) -> Option<Start> {
        let power = self.0.get_mut(index)?;
        let Power::Pending(start) = *power else { return None };
        *power = Power::On;
        Some(start)
    }

    /// Carries out a call of processor `caller`.
    pub(super) fn call(&mut self, caller: usize, call: Call) -> Answer {
        let wide = call.function & WIDE != 0;
        let [first, second, third] =
            call.arguments.map(|value| if wide { value } else { value & 0xffff_ffff });
        match of_either_width(call.function) {
            SMCCC_VERSION | PSCI_VERSION => Answer::Return(VERSION),
            SMCCC_ARCH_FEATURES => Answer::Return(match function_of(first) {
                Some(SMCCC_VERSION | SMCCC_ARCH_FEATURES) => SUCCESS,
                _ => NOT_SUPPORTED,
            }),
            PSCI_FEATURES => Answer::Return(function_of(first).map_or(NOT_SUPPORTED, features)),
            // No trusted system that would have to be moved.
            MIGRATE_INFO_TYPE => Answer::Return(2),
            // Whatever depth is asked for: a shallower one is allowed, and returns.
            CPU_SUSPEND => Answer::Suspend,
            CPU_ON => self.switch_on(first, Start { entry: second, context: third }),
            CPU_OFF => {
                if let Some(power) = self.0.get_mut(caller) {
                    *power = Power::Off;
                }
                Answer::Off
            }
            AFFINITY_INFO => Answer::Return(self.affinity_info(first, second)),
            SYSTEM_OFF => Answer::PowerOff,
            SYSTEM_RESET => Answer::Reset,
            // Type 0 is the architecture's warm reset; the upper half is the vendors'.
            SYSTEM_RESET2 if first == 0 => Answer::Reset,
            SYSTEM_RESET2 => Answer::Return(INVALID_PARAMETERS),
            _ => Answer::Return(NOT_SUPPORTED),
        }
    }

    fn switch_on(&mut self, target: u64, start: Start) -> Answer {
        let found = if target & !AFFINITY_FIELDS == 0 { self.position(target) } else { None };
        let Some(power) = found.and_then(|index| self.0.get_mut(index)) else {
            return Answer::Return(INVALID_PARAMETERS);
        };
        match *power {
            Power::On => Answer::Return(ALREADY_ON),
            Power::Pending(_) => Answer::Return(ON_PENDING),
            Power::Off if !start.entry.is_multiple_of(4) => Answer::Return(INVALID_ADDRESS),
            Power::Off => {
                *power = Power::Pending(start);
                Answer::Started
            }
        }
    }

    /// On (0), off (1) or about to be on (2), of the processors that agree with `target` in the
    /// fields from `level` on.
    fn affinity_info(&self, target: u64, level: u64) -> i64 {
        let ignored: u64 = match level {
            0 => 0,
            1 => 0xff,
            2 => 0xffff,
            3 => 0xff_ffff,
            _ => return INVALID_PARAMETERS,
        };
        if target & !AFFINITY_FIELDS != 0 {
            return INVALID_PARAMETERS;
        }
        let fields = AFFINITY_FIELDS & !ignored;
        let among = |power: &(u32, &Power)| u64::from(affinity(power.0)) & fields == target & fields;
        let mut found = (0u32..).zip(&self.0).filter(among).map(|(_, power)| power).peekable();
        if found.peek().is_none() {
            return INVALID_PARAMETERS;
        }
        let states = found.map(|power| match power {
            Power::On => 0,
            Power::Pending(_) => 2,
            Power::Off => 1,
        });
        // One that is on makes the whole cluster so, and one that is about to be comes next.
        states.min_by_key(|state| [0, 2, 1].iter().position(|known| known == state)).unwrap_or(1)
    }

    /// The processor that these fields of MPIDR_EL1 name.
    fn position(&self, target: u64) -> Option<usize> {
        let mut known = (0u32..).zip(&self.0);
        known.position(|(index, _)| u64::from(affinity(index)) == target)
    }
}

/// The number of a function that exists with arguments of both widths, without its width.
fn of_either_width(function: u32) -> u32 {
    match function & !WIDE {
        both @ (CPU_SUSPEND | CPU_ON | AFFINITY_INFO | SYSTEM_RESET2) => both,
        _ => function,
    }
}

/// The function that an argument names.
fn function_of(argument: u64) -> Option<u32> {
    u32::try_from(argument & 0xffff_ffff).ok()
}

/// What PSCI_FEATURES says of a function: its flags, of which none is set, or that it is unknown.
fn features(function: u32) -> i64 {
    match of_either_width(function) {
        SMCCC_VERSION | PSCI_VERSION | CPU_SUSPEND | CPU_OFF | CPU_ON | AFFINITY_INFO | MIGRATE_INFO_TYPE
        | SYSTEM_OFF | SYSTEM_RESET | PSCI_FEATURES | SYSTEM_RESET2 => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRY: u64 = 0x8008_0000;

    fn call(function: u32, arguments: [u64; 3]) -> Call {
        Call { function, arguments }
    }

    fn machine(count: usize) -> Cores {
        let mut cores = Cores::off(count);
        cores.boot(0);
        cores
    }

    #[test]
    fn what_is_asked_without_consequences() {
        let mut cores = machine(2);
        let cases = [
            (PSCI_VERSION, [0; 3], VERSION),
            (SMCCC_VERSION, [0; 3], VERSION),
            (SMCCC_ARCH_FEATURES, [SMCCC_ARCH_FEATURES.into(), 0, 0], SUCCESS),
            (SMCCC_ARCH_FEATURES, [0x8000_8000, 0, 0], NOT_SUPPORTED),
            (PSCI_FEATURES, [CPU_ON.into(), 0, 0], SUCCESS),
            (PSCI_FEATURES, [(CPU_ON | WIDE).into(), 0, 0], SUCCESS),
            (PSCI_FEATURES, [SMCCC_VERSION.into(), 0, 0], SUCCESS),
            (PSCI_FEATURES, [0x8400_000e, 0, 0], NOT_SUPPORTED),
            // No such function of that width.
            (PSCI_FEATURES, [(SYSTEM_OFF | WIDE).into(), 0, 0], NOT_SUPPORTED),
            (MIGRATE_INFO_TYPE, [0; 3], 2),
            (0x8400_000e, [0; 3], NOT_SUPPORTED),
            (PSCI_VERSION | WIDE, [0; 3], NOT_SUPPORTED),
            (0, [0; 3], NOT_SUPPORTED),
            (u32::MAX, [u64::MAX; 3], NOT_SUPPORTED),
            (SYSTEM_RESET2, [0x8000_0000, 0, 0], INVALID_PARAMETERS),
            (AFFINITY_INFO, [0, 0, 0], 0),
            (AFFINITY_INFO | WIDE, [1, 0, 0], 1),
            (AFFINITY_INFO | WIDE, [1, 1, 0], 0),
            (AFFINITY_INFO, [2, 0, 0], INVALID_PARAMETERS),
            (AFFINITY_INFO, [0, 4, 0], INVALID_PARAMETERS),
            (AFFINITY_INFO | WIDE, [1 << 31, 0, 0], INVALID_PARAMETERS),
        ];
        for (function, arguments, expected) in cases {
            let answer = cores.call(0, call(function, arguments));
            assert_eq!(answer, Answer::Return(expected), "{function:#x} {arguments:x?}");
        }
        assert_eq!(cores, machine(2));
    }

    #[test]
    fn power_and_reset() {
        let mut cores = machine(1);
        for (function, expected) in [
            (SYSTEM_OFF, Answer::PowerOff),
            (SYSTEM_RESET, Answer::Reset),
            (SYSTEM_RESET2, Answer::Reset),
            (SYSTEM_RESET2 | WIDE, Answer::Reset),
            (CPU_SUSPEND, Answer::Suspend),
            (CPU_SUSPEND | WIDE, Answer::Suspend),
            (CPU_OFF, Answer::Off),
        ] {
            assert_eq!(cores.call(0, call(function, [0, ENTRY, 0])), expected, "{function:#x}");
        }
        assert_eq!(cores.power(0), Power::Off);
    }

    #[test]
    fn a_processor_is_switched_on_once() {
        let mut cores = machine(18);
        let on = CPU_ON | WIDE;
        let mut ask = |arguments| cores.call(0, call(on, arguments));
        assert_eq!(ask([0, ENTRY, 0]), Answer::Return(ALREADY_ON));
        assert_eq!(ask([1, ENTRY + 2, 0]), Answer::Return(INVALID_ADDRESS));
        assert_eq!(ask([18, ENTRY, 0]), Answer::Return(INVALID_PARAMETERS));
        assert_eq!(ask([1 << 31 | 1, ENTRY, 0]), Answer::Return(INVALID_PARAMETERS));
        // The seventeenth stands in a second cluster.
        assert_eq!(ask([0x100, ENTRY, 77]), Answer::Started);
        assert_eq!(ask([0x100, ENTRY, 77]), Answer::Return(ON_PENDING));
        assert_eq!(cores.call(0, call(AFFINITY_INFO, [0x100, 0, 0])), Answer::Return(2));
        assert_eq!(cores.call(0, call(AFFINITY_INFO, [0x1ff, 1, 0])), Answer::Return(2));
        assert_eq!(cores.begin(15), None);
        assert_eq!(cores.begin(16), Some(Start { entry: ENTRY, context: 77 }));
        assert_eq!(cores.begin(16), None);
        assert_eq!(cores.call(0, call(on, [0x100, ENTRY, 0])), Answer::Return(ALREADY_ON));
        // Off, and on again.
        assert_eq!(cores.call(16, call(CPU_OFF, [0; 3])), Answer::Off);
        assert_eq!(cores.call(0, call(on, [0x100, ENTRY, 0])), Answer::Started);
    }

    #[test]
    fn narrow_calls_have_narrow_arguments() {
        let mut cores = machine(2);
        let high = 0xdead_beef_0000_0000;
        assert_eq!(cores.call(0, call(CPU_ON, [high | 1, high | ENTRY, high | 5])), Answer::Started);
        assert_eq!(cores.begin(1), Some(Start { entry: ENTRY, context: 5 }));
    }

    proptest! {
        /// Whatever is called: the caller is off exactly if told so, and no other processor
        /// changes but by being switched on from off.
        #[test]
        fn a_call_changes_no_more_than_it_says(
            function in prop_oneof![any::<u32>(), 0x8400_0000u32..0x8400_0020, 0xc400_0000u32..0xc400_0020],
            arguments in prop::array::uniform3(prop_oneof![any::<u64>(), 0u64..6]),
            caller in 0usize..4,
        ) {
            let mut cores = machine(4);
            cores.boot(caller);
            let before = cores.clone();
            let answer = cores.call(caller, call(function, arguments));
            let changed: Vec<usize> = (0..4).filter(|index| before.power(*index) != cores.power(*index)).collect();
            match answer {
                Answer::Off => prop_assert_eq!(changed, [caller]),
                Answer::Started => {
                    let [started] = changed[..] else { panic!("{changed:?}") };
                    prop_assert_eq!(before.power(started), Power::Off);
                    prop_assert!(matches!(cores.power(started), Power::Pending(_)));
                }
                _ => prop_assert!(changed.is_empty()),
            }
        }
    }
}

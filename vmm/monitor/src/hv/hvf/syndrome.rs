//! What a guest did to leave, read from ESR_EL2 (Arm ARM, DDI 0487, D24.2.40). Pure.

/// What the monitor is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trap {
    /// Waits for something to happen.
    Wait(Wait),
    /// Calls the firmware by HVC. The framework reports the instruction behind it.
    Hvc(u16),
    /// Calls the firmware by SMC. The framework reports the SMC itself.
    Smc(u16),
    /// Accesses a system register.
    SystemRegister(SystemAccess),
    /// Loads or stores, said whole.
    Access(Access),
    /// Cleans a cache line of memory that is no memory: nothing is to be done.
    CacheMaintenance,
    /// Loads or stores in a way that the processor does not describe: a pair, a vector, a
    /// write-back of the address.
    Undescribed,
    /// Walks page tables that are not in memory.
    TableWalk,
    /// Loads or stores what the host's hardware failed to.
    External,
    /// Fetches an instruction where no memory is.
    Fetch,
    /// Meets a breakpoint, a watchpoint, a step or BRK, which were not asked for.
    Debug(&'static str),
    /// Of a class that this back end does not know.
    Unknown(u8),
}

/// How it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// WFI: for an interrupt.
    Interrupt,
    /// WFE: for an event, which other processors send unseen. Ending it early is allowed.
    Event,
    /// WFIT: for an interrupt, up to a deadline in a register.
    InterruptUntil,
    /// WFET: for an event, up to a deadline.
    EventUntil,
}

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Stores.
    pub(super) write: bool,
    /// Bytes: 1, 2, 4 or 8.
    pub(super) width: u8,
    /// What is loaded is widened by its sign.
    pub(super) sign_extend: bool,
    /// The register is used whole; otherwise its upper half is zeroed by a load.
    pub(super) wide: bool,
    /// X0 to X30; 31 is the zero register.
    pub(super) register: u8,
}

impl Access {
    /// What the register holds after a load of `bytes`, as many as its width.
    pub(super) fn loaded(self, bytes: [u8; 8]) -> u64 {
        let bits = u32::from(self.width) * 8;
        let unused = 64 - bits.clamp(8, 64);
        let value = u64::from_le_bytes(bytes) << unused;
        let value =
            if self.sign_extend { (value.cast_signed() >> unused).cast_unsigned() } else { value >> unused };
        if self.wide { value } else { value & u64::from(u32::MAX) }
    }
}

/// An access to a system register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SystemAccess {
    /// Which.
    pub(super) name: SystemName,
    /// MRS; otherwise MSR.
    pub(super) read: bool,
    /// X0 to X30; 31 is the zero register.
    pub(super) register: u8,
}

/// The five numbers that name a system register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SystemName {
    pub(super) op0: u8,
    pub(super) op1: u8,
    pub(super) crn: u8,
    pub(super) crm: u8,
    pub(super) op2: u8,
}

impl SystemName {
    /// Whether it is of the interface of a vCPU to the interrupt controller (GICv3): the priority
    /// mask, and ICC_*. What reads zero there is a guest without interrupts.
    pub(super) fn is_of_the_controller(self) -> bool {
        let Self { op0, op1, crn, crm, op2: _ } = self;
        (op0, op1) == (3, 0) && ((crn, crm) == (4, 6) || (crn == 12 && (8..=12).contains(&crm)))
    }
}

impl std::fmt::Display for SystemName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { op0, op1, crn, crm, op2 } = self;
        write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
    }
}

/// `count` bits of `syndrome` from bit `low`; at most 8.
fn bits(syndrome: u64, low: u32, count: u32) -> u8 {
    let [byte, ..] = (syndrome >> low & ((1 << count) - 1)).to_le_bytes();
    byte
}

/// Reads it. Every value has a meaning.
pub(super) fn decode(syndrome: u64) -> Trap {
    let [low, high, ..] = syndrome.to_le_bytes();
    let immediate = u16::from_le_bytes([low, high]);
    match bits(syndrome, 26, 6) {
        0x01 => Trap::Wait(match bits(syndrome, 0, 2) {
            0 => Wait::Interrupt,
            1 => Wait::Event,
            2 => Wait::InterruptUntil,
            _ => Wait::EventUntil,
        }),
        0x16 => Trap::Hvc(immediate),
        0x17 => Trap::Smc(immediate),
        0x18 => Trap::SystemRegister(SystemAccess {
            name: SystemName {
                op0: bits(syndrome, 20, 2),
                op1: bits(syndrome, 14, 3),
                crn: bits(syndrome, 10, 4),
                crm: bits(syndrome, 1, 4),
                op2: bits(syndrome, 17, 3),
            },
            read: bits(syndrome, 0, 1) == 1,
            register: bits(syndrome, 5, 5),
        }),
        0x20 | 0x21 => Trap::Fetch,
        0x24 | 0x25 => data_abort(syndrome),
        0x30 | 0x31 => Trap::Debug("a breakpoint"),
        0x32 | 0x33 => Trap::Debug("a single step"),
        0x34 | 0x35 => Trap::Debug("a watchpoint"),
        0x3c => Trap::Debug("BRK"),
        class => Trap::Unknown(class),
    }
}

fn data_abort(syndrome: u64) -> Trap {
    let set = |bit| bits(syndrome, bit, 1) == 1;
    // Synchronous external abort, or one on a walk of page tables.
    let status = bits(syndrome, 0, 6);
    if status == 0b01_0000 || status & 0b11_1100 == 0b01_0100 {
        return Trap::External;
    }
    if set(7) {
        return Trap::TableWalk;
    }
    if set(8) {
        return Trap::CacheMaintenance;
    }
    if !set(24) {
        return Trap::Undescribed;
    }
    Trap::Access(Access {
        write: set(6),
        width: 1 << bits(syndrome, 22, 2),
        sign_extend: set(21),
        wide: set(15),
        register: bits(syndrome, 16, 5),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The syndrome of a load or store at an address without memory, as a processor writes it.
    pub(in super::super) fn of_access(access: Access) -> u64 {
        let flag = |set: bool, bit: u32| u64::from(set) << bit;
        0x24 << 26
            | 1 << 25
            | 1 << 24
            | u64::from(access.width.trailing_zeros()) << 22
            | flag(access.sign_extend, 21)
            | u64::from(access.register) << 16
            | flag(access.wide, 15)
            | flag(access.write, 6)
            | 0b00_0111
    }

    /// Likewise of MRS (`read`) or MSR.
    pub(in super::super) fn of_system(access: SystemAccess) -> u64 {
        let SystemName { op0, op1, crn, crm, op2 } = access.name;
        0x18 << 26
            | 1 << 25
            | u64::from(op0) << 20
            | u64::from(op2) << 17
            | u64::from(op1) << 14
            | u64::from(crn) << 10
            | u64::from(access.register) << 5
            | u64::from(crm) << 1
            | u64::from(access.read)
    }

    #[test]
    fn each_class_is_told_apart() {
        let abort = |rest: u64| 0x24 << 26 | 1 << 25 | rest;
        let cases = [
            (0x01 << 26 | 1 << 25, Trap::Wait(Wait::Interrupt)),
            (0x01 << 26 | 1 << 25 | 1, Trap::Wait(Wait::Event)),
            (0x01 << 26 | 1 << 25 | 2, Trap::Wait(Wait::InterruptUntil)),
            (0x01 << 26 | 1 << 25 | 3, Trap::Wait(Wait::EventUntil)),
            (0x16 << 26 | 1 << 25, Trap::Hvc(0)),
            (0x16 << 26 | 1 << 25 | 0x1234, Trap::Hvc(0x1234)),
            (0x17 << 26 | 1 << 25 | 0xffff, Trap::Smc(0xffff)),
            (0x20 << 26 | 1 << 25 | 7, Trap::Fetch),
            (0x30 << 26, Trap::Debug("a breakpoint")),
            (0x32 << 26, Trap::Debug("a single step")),
            (0x34 << 26, Trap::Debug("a watchpoint")),
            (0x3c << 26 | 1, Trap::Debug("BRK")),
            (0, Trap::Unknown(0)),
            (0x07 << 26, Trap::Unknown(7)),
            // A translation fault without a description: LDP, for one.
            (abort(7), Trap::Undescribed),
            (abort(1 << 6 | 7), Trap::Undescribed),
            (abort(1 << 24 | 1 << 7 | 7), Trap::TableWalk),
            (abort(1 << 8 | 1 << 6 | 7), Trap::CacheMaintenance),
            (abort(1 << 24 | 0x10), Trap::External),
            (abort(0x17), Trap::External),
        ];
        for (syndrome, expected) in cases {
            assert_eq!(decode(syndrome), expected, "{syndrome:#x}");
            // The upper half is no part of the class (ISS2).
            assert_eq!(decode(syndrome | 0xab << 32), expected, "{syndrome:#x}");
        }
    }

    /// Real ones: `ldrb w1, [x0]`, `strh w2, [x0]`, `ldrsw x3, [x0]`, `str xzr, [x0]`.
    #[test]
    fn loads_and_stores_of_real_processors() {
        let plain = Access { write: false, width: 1, sign_extend: false, wide: false, register: 1 };
        let cases = [
            (0x9301_0007, plain),
            (0x9342_0047, Access { write: true, width: 2, register: 2, ..plain }),
            (0x93a3_8007, Access { width: 4, sign_extend: true, wide: true, register: 3, ..plain }),
            (0x93df_8047, Access { write: true, width: 8, wide: true, register: 31, ..plain }),
        ];
        for (syndrome, access) in cases {
            assert_eq!(decode(syndrome), Trap::Access(access), "{syndrome:#x}");
        }
    }

    #[test]
    fn a_load_is_widened_as_its_instruction_says() {
        let access =
            |width, sign_extend, wide| Access { write: false, width, sign_extend, wide, register: 0 };
        let bytes = 0xfedc_ba98_8182_8384_u64.to_le_bytes();
        let cases = [
            (access(1, false, false), 0x84),
            (access(1, true, false), 0xffff_ff84),
            (access(1, true, true), 0xffff_ffff_ffff_ff84),
            (access(2, false, true), 0x8384),
            (access(2, true, true), 0xffff_ffff_ffff_8384),
            (access(4, false, true), 0x8182_8384),
            (access(4, true, true), 0xffff_ffff_8182_8384),
            (access(8, false, true), 0xfedc_ba98_8182_8384),
        ];
        for (access, expected) in cases {
            assert_eq!(access.loaded(bytes), expected, "{access:?}");
        }
    }

    proptest! {
        /// Whatever a processor says, there is an answer, and its fields are within their bounds.
        #[test]
        fn every_syndrome_has_a_meaning(syndrome: u64) {
            match decode(syndrome) {
                Trap::Access(access) => {
                    prop_assert!([1, 2, 4, 8].contains(&access.width) && access.register < 32);
                }
                Trap::SystemRegister(access) => prop_assert!(access.register < 32 && access.name.op0 < 4),
                Trap::Unknown(class) => prop_assert!(class < 64),
                _ => {}
            }
        }

        #[test]
        fn what_is_written_is_read(
            write: bool, size in 0u32..4, sign_extend: bool, wide: bool, register in 0u8..32,
            read: bool, op0 in 2u8..4, op1 in 0u8..8, crn in 0u8..16, crm in 0u8..16, op2 in 0u8..8
        ) {
            let access = Access { write, width: 1 << size, sign_extend, wide, register };
            prop_assert_eq!(decode(of_access(access)), Trap::Access(access));
            let system = SystemAccess { name: SystemName { op0, op1, crn, crm, op2 }, read, register };
            prop_assert_eq!(decode(of_system(system)), Trap::SystemRegister(system));
        }

        /// A load of fewer bytes never takes any from those behind them.
        #[test]
        fn a_load_depends_on_its_bytes_alone(value: u64, other: u64, size in 0u32..4, sign_extend: bool, wide: bool) {
            let access = Access { write: false, width: 1 << size, sign_extend, wide, register: 0 };
            let used = if size == 3 { u64::MAX } else { (1 << (8 << size)) - 1 };
            let mixed = value & used | other & !used;
            prop_assert_eq!(access.loaded(value.to_le_bytes()), access.loaded(mixed.to_le_bytes()));
        }
    }
}

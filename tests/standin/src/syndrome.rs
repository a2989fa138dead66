//! ESR_EL2 of what a guest did (Arm ARM, DDI 0487, D24.2.40): what the framework tells of an exit.

/// A load or store that the processor describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// A store.
    pub write: bool,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// The load copies its highest bit into all above.
    pub signed: bool,
    /// The register is X, not W.
    pub wide: bool,
    /// Of X0 to X30, or 31 for the zero register.
    pub register: u8,
    /// Memory is there, but not for this.
    pub permission: bool,
}

/// The instruction has 32 bits.
const LONG: u64 = 1 << 25;
/// The class of an exception.
const fn class(number: u64) -> u64 {
    number << 26
}
/// Data abort from a lower exception level.
const DATA_ABORT: u64 = class(0x24);
/// Translation fault, level 3.
const TRANSLATION: u64 = 0b00_0111;
/// Permission fault, level 3.
const PERMISSION: u64 = 0b00_1111;

impl Access {
    /// The syndrome of the abort that it ends in.
    #[must_use]
    pub fn syndrome(self) -> u64 {
        let flag = |set: bool, bit: u32| u64::from(set) << bit;
        DATA_ABORT
            | LONG
            // The fields that follow are valid.
            | 1 << 24
            | u64::from(self.width.trailing_zeros()) << 22
            | flag(self.signed, 21)
            | u64::from(self.register & 31) << 16
            | flag(self.wide, 15)
            | flag(self.write, 6)
            | if self.permission { PERMISSION } else { TRANSLATION }
    }
}

/// Of an abort that the processor does not describe, of its lower fields.
#[must_use]
pub fn undescribed(fields: u64) -> u64 {
    // CM, WnR, DFSC
    DATA_ABORT | LONG | fields & (1 << 8 | 1 << 6 | 0x3f)
}

/// HVC, with immediate value 0.
#[must_use]
pub fn hypervisor_call() -> u64 {
    class(0x16) | LONG
}

/// SMC, with immediate value 0.
#[must_use]
pub fn monitor_call() -> u64 {
    class(0x17) | LONG
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of real processors: `ldrb w1, [x0]`, `strh w2, [x0]`, `ldrsw x3, [x0]`, `str xzr, [x0]`.
    #[test]
    fn loads_and_stores_are_described_as_processors_do() {
        let plain =
            Access { write: false, width: 1, signed: false, wide: false, register: 1, permission: false };
        let cases = [
            (0x9301_0007, plain),
            (0x9342_0047, Access { write: true, width: 2, register: 2, ..plain }),
            (0x93a3_8007, Access { width: 4, signed: true, wide: true, register: 3, ..plain }),
            (0x93df_8047, Access { write: true, width: 8, wide: true, register: 31, ..plain }),
            (0x9301_000f, Access { permission: true, ..plain }),
        ];
        for (syndrome, access) in cases {
            assert_eq!(access.syndrome(), syndrome, "{access:?}");
        }
    }

    #[test]
    fn other_exits() {
        assert_eq!(undescribed(1 << 6 | 7), 0x9200_0047);
        // What is valid or not is not the caller's to say.
        assert_eq!(undescribed(1 << 24 | 0x06), 0x9200_0006);
        assert_eq!(hypervisor_call(), 0x5a00_0000);
        assert_eq!(monitor_call(), 0x5e00_0000);
    }
}

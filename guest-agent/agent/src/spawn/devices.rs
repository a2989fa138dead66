//! The device cgroup's rules as an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. Pure: rules in, instructions out.
//!
//! The last rule that speaks of a device and of a kind of access decides on it, so the program walks the rules backwards
//! with the kinds of access still undecided in a register. What no rule speaks of is denied; the devices that every
//! container must have (and making any node) come last and are therefore always granted.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use thiserror::Error;

/// Why a rule is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeviceRuleError {
    /// Only `a`, `b` and `c` can be told apart by the kernel.
    #[error("device rule of type {0:?} is not supported; a, b and c are")]
    Type(&'static str),
    /// A number out of range.
    #[error("device rule has number {0}; 0 to 4294967295 are possible, and -1 for any")]
    Number(i64),
    /// A letter other than r, w, m.
    #[error("device rule has access {0:?}; letters of \"rwm\" are possible")]
    Access(String),
}

const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const EVERY: u8 = MKNOD | READ | WRITE;

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// One rule; nothing means any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

const fn allow(kind: i32, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

/// What the runtime spec promises every container, as other engines grant it.
const ALWAYS: [Rule; 10] = [
    allow(CHAR, None, None, MKNOD),
    allow(BLOCK, None, None, MKNOD),
    allow(CHAR, Some(1), Some(3), EVERY),
    allow(CHAR, Some(1), Some(5), EVERY),
    allow(CHAR, Some(1), Some(7), EVERY),
    allow(CHAR, Some(1), Some(8), EVERY),
    allow(CHAR, Some(1), Some(9), EVERY),
    allow(CHAR, Some(5), Some(0), EVERY),
    allow(CHAR, Some(5), Some(2), EVERY),
    allow(CHAR, Some(136), None, EVERY),
];

fn rule(rule: &LinuxDeviceCgroup) -> Result<Rule, DeviceRuleError> {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHAR),
        Some(LinuxDeviceType::P) => return Err(DeviceRuleError::Type("p")),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| DeviceRuleError::Number(number)),
    };
    let letters = rule.access().as_deref().unwrap_or("rwm");
    let access = letters.bytes().try_fold(0, |set, letter| match letter {
        b'r' => Ok(set | READ),
        b'w' => Ok(set | WRITE),
        b'm' => Ok(set | MKNOD),
        _ => Err(DeviceRuleError::Access(letters.to_owned())),
    })?;
    Ok(Rule { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
}

// Registers: 1 the context, 2 the access still undecided, 3 the type, 4 the major and 5 the minor number.
const LDX_W: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOV32: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOV64_K: u8 = 0xb7;
const AND32_K: u8 = 0x54;
const RSH32_K: u8 = 0x74;
const JNE32_K: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JSET32_K: u8 = 0x46;
const JA: u8 = 0x05;
const EXIT: u8 = 0x95;

/// One eBPF instruction as the kernel reads it (struct bpf_insn, little endian on every architecture we run on).
fn insn(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = imm.to_le_bytes();
    u64::from_le_bytes([code, dst | src << 4, o0, o1, i0, i1, i2, i3])
}

/// Compiles the rules of `linux.resources.devices`, in their order, with the devices every container has.
///
/// # Errors
/// [`DeviceRuleError`] names what a rule asks for and the kernel cannot do.
pub fn compile(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>, DeviceRuleError> {
    let rules = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    Ok(assemble(rules.iter().chain(&ALWAYS).copied()))
}

fn assemble(rules: impl DoubleEndedIterator<Item = Rule>) -> Vec<u64> {
    let mut code = vec![
        insn(LDX_W, 2, 1, 0, 0),
        insn(MOV32, 3, 2, 0, 0),
        insn(AND32_K, 3, 0, 0, 0xffff),
        insn(RSH32_K, 2, 0, 0, 16),
        insn(LDX_W, 4, 1, 4, 0),
        insn(LDX_W, 5, 1, 8, 0),
    ];
    for rule in rules.rev() {
        let access = i32::from(rule.access);
        let mut block = if rule.allow {
            vec![
                insn(AND32_K, 2, 0, 0, i32::from(EVERY & !rule.access)),
                insn(JNE32_K, 2, 0, 2, 0),
                insn(MOV64_K, 0, 0, 0, 1),
                insn(EXIT, 0, 0, 0, 0),
            ]
        } else {
            vec![
                insn(JSET32_K, 2, 0, 1, access),
                insn(JA, 0, 0, 2, 0),
                insn(MOV64_K, 0, 0, 0, 0),
                insn(EXIT, 0, 0, 0, 0),
            ]
        };
        let numbers = [(5, rule.minor), (4, rule.major)];
        for (register, number) in numbers.into_iter().filter_map(|(r, n)| Some((r, n?))) {
            let over = i16::try_from(block.len()).unwrap_or(i16::MAX);
            block.insert(0, insn(JNE32_K, register, 0, over, i32::from_ne_bytes(number.to_ne_bytes())));
        }
        if let Some(kind) = rule.kind {
            let over = i16::try_from(block.len()).unwrap_or(i16::MAX);
            block.insert(0, insn(JNE32_K, 3, 0, over, kind));
        }
        code.extend(block);
        if rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() && rule.access == EVERY {
            break; // nothing before it can matter
        }
    }
    code.push(insn(MOV64_K, 0, 0, 0, 0));
    code.push(insn(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the kernel would answer: a small machine for the instructions used above.
    fn run(code: &[u64], access: u8, kind: i32, major: u32, minor: u32) -> bool {
        let mut r = [0u64; 11];
        let context = [u32::from(access) << 16 | u32::try_from(kind).expect("kind"), major, minor];
        let mut at = 0i64;
        loop {
            let bytes = code[usize::try_from(at).expect("forward")].to_le_bytes();
            at += 1;
            let (dst, src) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
            let offset = i64::from(i16::from_le_bytes([bytes[2], bytes[3]]));
            let imm = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let k = u32::from_ne_bytes(imm.to_ne_bytes());
            let low = |value: u64| u32::try_from(value & 0xffff_ffff).expect("masked");
            match bytes[0] {
                LDX_W => r[dst] = u64::from(context[usize::try_from(offset / 4).expect("field")]),
                MOV32 => r[dst] = u64::from(low(r[src])),
                MOV64_K => r[dst] = u64::from(k),
                AND32_K => r[dst] = u64::from(low(r[dst]) & k),
                RSH32_K => r[dst] = u64::from(low(r[dst]) >> k),
                JNE32_K if low(r[dst]) != k => at += offset,
                JSET32_K if low(r[dst]) & k != 0 => at += offset,
                JNE32_K | JSET32_K => {}
                JA => at += offset,
                EXIT => return r[0] != 0,
                code => panic!("unknown code {code:#x}"),
            }
        }
    }

    /// The meaning, one kind of access at a time.
    fn meaning(rules: &[Rule], access: u8, kind: i32, major: u32, minor: u32) -> bool {
        [MKNOD, READ, WRITE].iter().filter(|bit| access & **bit != 0).all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    rule.access & bit != 0
                        && rule.kind.is_none_or(|k| k == kind)
                        && rule.major.is_none_or(|m| m == major)
                        && rule.minor.is_none_or(|m| m == minor)
                })
                .is_some_and(|rule| rule.allow)
        })
    }

    fn rules(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).expect("rules")
    }

    #[test]
    fn what_every_container_has() {
        let code = compile(&rules(r#"[{"allow":false,"access":"rwm"}]"#)).expect("compiles");
        assert!(run(&code, READ | WRITE, CHAR, 1, 3), "null");
        assert!(run(&code, READ, CHAR, 136, 7), "a terminal");
        assert!(run(&code, MKNOD, BLOCK, 8, 0), "any node may be made");
        assert!(!run(&code, READ, BLOCK, 254, 0), "the guest's disk");
        assert!(!run(&code, READ | MKNOD, CHAR, 1, 1), "mem");
        assert!(!run(&code, READ, CHAR, 10, 200), "tun");
    }

    #[test]
    fn rules_add_to_it() {
        let code = compile(&rules(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":200,"access":"rw"}]"#,
        ))
        .expect("compiles");
        assert!(run(&code, READ | WRITE, CHAR, 10, 200));
        assert!(!run(&code, READ, BLOCK, 10, 200));
        let all = compile(&rules(r#"[{"allow":true,"type":"a"}]"#)).expect("compiles");
        assert!(run(&all, READ | WRITE, BLOCK, 254, 0));
    }

    #[test]
    fn bad_rules_are_refused() {
        assert_eq!(
            compile(&rules(r#"[{"allow":true,"access":"rx"}]"#)),
            Err(DeviceRuleError::Access("rx".into()))
        );
        assert_eq!(compile(&rules(r#"[{"allow":true,"major":-2}]"#)), Err(DeviceRuleError::Number(-2)));
        assert_eq!(compile(&rules(r#"[{"allow":true,"type":"p"}]"#)), Err(DeviceRuleError::Type("p")));
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_rules_say(
            rules in prop::collection::vec(
                (any::<bool>(), prop::option::of(1..3i32), prop::option::of(0..4u32), prop::option::of(0..4u32), 0..8u8)
                    .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access }), 0..12),
            access in 1..8u8, kind in 1..3i32, major in 0..4u32, minor in 0..4u32,
        ) {
            let code = assemble(rules.iter().copied());
            prop_assert_eq!(run(&code, access, kind, major, minor), meaning(&rules, access, kind, major, minor));
        }
    }
}

//! The device cgroup's rules as an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. Pure: rules
//! in, instructions out.
//!
//! The last rule that speaks of a device and of a kind of access decides on it, so the program
//! walks the rules backwards with the kinds of access still undecided in a register. What no rule
//! speaks of is denied; the devices that every container must have (and making any node) come last
//! and are therefore always granted.
//!
//! The kernel follows every path through a program before it takes it, and that was the dearest
//! step of making a container: so what a later rule covers is left out, and what rules have in
//! common is asked once.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use thiserror::Error;

/// Why a rule is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeviceRuleError {
    /// Only `a`, `b` and `c` can be told apart by the kernel.
    #[error("device rule has type {0:?}; only a, b and c are supported")]
    Type(&'static str),
    /// A number out of range.
    #[error("device rule has number {0}; 0 to 4294967295 are allowed, and -1 for any")]
    Number(i64),
    /// A letter other than r, w, m.
    #[error("device rule has access {0:?}; only the letters r, w and m are allowed")]
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

// Registers: 1 the context, 2 the access still undecided, 3 the type, 4 the major and 5 the minor
// number.
const LDX_W: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOV32: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOV64_K: u8 = 0xb7;
const AND32_K: u8 = 0x54;
const RSH32_K: u8 = 0x74;
const JNE32_K: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JSET32_K: u8 = 0x46;
const JA: u8 = 0x05;
const EXIT: u8 = 0x95;

/// One eBPF instruction as the kernel reads it (struct bpf_insn, little endian on every
/// architecture we run on).
fn insn(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = imm.to_le_bytes();
    u64::from_le_bytes([code, dst | src << 4, o0, o1, i0, i1, i2, i3])
}

/// Compiles the rules of `linux.resources.devices`, in their order, with the devices every
/// container has.
///
/// # Errors
/// [`DeviceRuleError`] names what a rule asks for and the kernel cannot do.
pub fn compile(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>, DeviceRuleError> {
    let rules = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    Ok(assemble(rules.iter().chain(&ALWAYS).copied()))
}

/// A register and the value that it must have; nothing means any.
type Condition = Option<(u8, i32)>;

impl Rule {
    /// Whether this rule, coming later, decides on everything that `other` speaks of.
    fn covers(&self, other: &Self) -> bool {
        self.kind.is_none_or(|kind| other.kind == Some(kind))
            && self.major.is_none_or(|major| other.major == Some(major))
            && self.minor.is_none_or(|minor| other.minor == Some(minor))
            && other.access & !self.access == 0
    }

    /// What has to hold, from type to minor number.
    fn conditions(&self) -> [Condition; 3] {
        let number = |number: u32| i32::from_ne_bytes(number.to_ne_bytes());
        [
            self.kind.map(|kind| (3, kind)),
            self.major.map(|major| (4, number(major))),
            self.minor.map(|minor| (5, number(minor))),
        ]
    }

    /// A place among neighbours that decide alike: "any" comes after all values, every access after
    /// single ones, so that no instruction is out of reach.
    fn place(&self) -> ([(bool, Condition); 3], u8) {
        (self.conditions().map(|condition| (condition.is_none(), condition)), self.access)
    }

    /// The end of the program where this rule holds and decides on all that is undecided.
    fn decision(&self) -> Vec<u64> {
        let rest = i32::from(EVERY & !self.access);
        let undecided = match (self.allow, self.access) {
            (_, EVERY) => vec![],
            (true, _) => vec![insn(AND32_K, 2, 0, 0, rest), insn(JNE32_K, 2, 0, 2, 0)],
            (false, access) => {
                vec![insn(JSET32_K, 2, 0, 1, i32::from(access)), insn(JA, 0, 0, 2, 0)]
            }
        };
        let answer = [insn(MOV64_K, 0, 0, 0, i32::from(self.allow)), insn(EXIT, 0, 0, 0, 0)];
        undecided.into_iter().chain(answer).collect()
    }
}

/// Most rules that share a condition: a jump goes over 32,767 instructions at most.
const TOGETHER: usize = 1024;

fn assemble(rules: impl DoubleEndedIterator<Item = Rule>) -> Vec<u64> {
    let mut deciding: Vec<Rule> = Vec::new();
    for rule in rules.rev() {
        if !deciding.iter().any(|later| later.covers(&rule)) {
            deciding.push(rule);
        }
    }
    let mut code = vec![
        insn(LDX_W, 2, 1, 0, 0),
        insn(MOV32, 3, 2, 0, 0),
        insn(AND32_K, 3, 0, 0, 0xffff),
        insn(RSH32_K, 2, 0, 0, 16),
        insn(LDX_W, 4, 1, 4, 0),
        insn(LDX_W, 5, 1, 8, 0),
    ];
    for alike in deciding.chunk_by_mut(|one, next| one.allow == next.allow) {
        // Their order does not count: each grants, or each denies.
        alike.sort_by_key(Rule::place);
        alike.chunks(TOGETHER).for_each(|rules| code.extend(block(rules, 0)));
    }
    let everything = Rule { allow: false, kind: None, major: None, minor: None, access: EVERY };
    if !deciding.last().is_some_and(|last| last.covers(&everything)) {
        code.extend(everything.decision());
    }
    code
}

/// Instructions of rules that agree in their conditions before `depth`; they go on behind the last
/// one where none decides.
fn block(rules: &[Rule], depth: usize) -> Vec<u64> {
    let same = |one: &Rule, next: &Rule| one.conditions().get(depth) == next.conditions().get(depth);
    let mut code = Vec::new();
    for group in rules.chunk_by(same) {
        let Some(condition) = group.first().and_then(|rule| rule.conditions().get(depth).copied()) else {
            group.iter().for_each(|rule| code.extend(rule.decision()));
            continue;
        };
        let inner = block(group, depth + 1);
        if let Some((register, value)) = condition {
            let over =
                i16::try_from(inner.len()).expect("rules that share a condition are few enough for one jump");
            code.push(insn(JNE32_K, register, 0, over, value));
        }
        code.extend(inner);
    }
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

    fn all_reachable(code: &[u64]) -> bool {
        let mut reached = vec![false; code.len()];
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            let bytes = code[at].to_le_bytes();
            let target = at + 1 + usize::try_from(i16::from_le_bytes([bytes[2], bytes[3]])).expect("forward");
            match bytes[0] {
                EXIT => {}
                JA => open.push(target),
                JNE32_K | JSET32_K => open.extend([at + 1, target]),
                _ => open.push(at + 1),
            }
        }
        reached.into_iter().all(|one| one)
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
    fn what_is_said_twice_is_asked_once() {
        let plain = compile(&rules(r#"[{"allow":false,"access":"rwm"}]"#)).expect("compiles");
        let twice = compile(&rules(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
                {"allow":true,"type":"c","major":136,"access":"rwm"},{"allow":true,"type":"b","access":"m"}]"#,
        ));
        assert_eq!(twice, Ok(plain.clone()));
        let jumps = plain.iter().filter(|one| [JNE32_K, JSET32_K].contains(&one.to_le_bytes()[0])).count();
        assert!(jumps <= 16, "{jumps}");
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
            prop_assert!(all_reachable(&code), "the kernel refuses what nothing reaches");
            prop_assert_eq!(run(&code, access, kind, major, minor), meaning(&rules, access, kind, major, minor));
        }
    }
}

//! OCI seccomp profiles as classic BPF. Pure: a profile in, instructions out; what cannot be
//! enforced is refused by name.
//!
//! Rules are tried in the profile's order and the first that matches decides; a rule without
//! arguments ends the search. Dispatch is a binary search over ranges of system call numbers,
//! because every call of the container runs through it. Calls of another architecture, listed in
//! the profile or not, end the process: never looser than the profile. Where calls are refused that
//! no rule names, those that nobody here has heard of answer ENOSYS, as a kernel without them does:
//! programs try the next best then.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};
use thiserror::Error;

use crate::arch;
pub use crate::sys::Instruction;

/// Why a profile is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SeccompError {
    /// The action would need a supervisor process.
    #[error("seccomp action SCMP_ACT_NOTIFY is not supported by this agent")]
    Notify,
    /// The flag belongs to such a supervisor.
    #[error("seccomp flag {0} is not supported by this agent")]
    Flag(&'static str),
    /// A rule that restricts names a call that no architecture has.
    #[error("seccomp rule restricts {0:?}, which is not a system call known to this agent")]
    UnknownSyscall(String),
    /// System calls have six arguments.
    #[error("seccomp rule for {name:?} has argument index {index}; 0 to 5 are allowed")]
    Argument {
        /// First name of the rule.
        name: String,
        /// What it asked for.
        index: usize,
    },
    /// More than the kernel takes in one filter.
    #[error("seccomp profile needs {0} instructions; the kernel's limit is 4096")]
    TooLong(usize),
}

/// A filter ready for seccomp(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompFilter {
    /// The program.
    pub program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

const LD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JA: u16 = 0x05; // BPF_JMP | BPF_JA
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RET: u16 = 0x06;

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

const LONGEST: usize = 4096;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// What one rule wants of the arguments, and what then happens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    verdict: u32,
}

/// The number -1: no system call.
const NO_SYSCALL: u32 = u32::MAX;

/// A system call's number, and the place of a rule that speaks of it among all.
type Call = (u32, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    index: u8,
    op: Operator,
    value: u64,
    second: u64,
}

/// Compiles a profile.
///
/// # Errors
/// [`SeccompError`] names what cannot be enforced.
pub fn compile(profile: &LinuxSeccomp) -> Result<SeccompFilter, SeccompError> {
    if profile.listener_path().is_some() {
        return Err(SeccompError::Notify);
    }
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            Flag::SeccompFilterFlagTsync => 1,
            Flag::SeccompFilterFlagLog => 2,
            Flag::SeccompFilterFlagSpecAllow => 4,
            Flag::SeccompFilterFlagWaitKillableRecv => {
                return Err(SeccompError::Flag("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"));
            }
        };
    }
    let default = verdict(profile.default_action(), profile.default_errno_ret())?;
    let (mut all, mut calls) = (Vec::new(), Vec::new());
    for syscall in profile.syscalls().iter().flatten() {
        add(syscall, default, &mut all, &mut calls)?;
    }
    let mut program = vec![
        op(LD, OFFSET_ARCH),
        jump(JEQ, arch::AUDIT_ARCH, 1, 0),
        op(RET, RET_KILL_PROCESS),
        op(LD, OFFSET_NR),
    ];
    // A tracer skips a call by the number -1, and the filter is asked after the tracer: the kernel
    // does nothing for it.
    let skipped = [jump(JEQ, NO_SYSCALL, 0, 1), op(RET, RET_ALLOW)];
    match arch::FOREIGN_SYSCALLS {
        Some(foreign) => {
            program.push(jump(JGE, foreign, 0, 3));
            program.extend(skipped);
            program.push(op(RET, RET_KILL_PROCESS));
        }
        None => program.extend(skipped),
    }
    let mut ranges = ranges(calls, &all, default);
    if profile.default_action() == Action::ScmpActErrno {
        let start = arch::unknown_syscalls();
        ranges.retain(|(other, _)| *other < start);
        ranges.push((start, vec![Rule { conditions: Vec::new(), verdict: RET_ERRNO | ENOSYS }]));
    }
    program.extend(dispatch(&ranges, default));
    if program.len() > LONGEST {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(SeccompFilter { program, flags })
}

fn verdict(action: Action, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => RET_KILL_THREAD,
        Action::ScmpActKillProcess => RET_KILL_PROCESS,
        Action::ScmpActTrap => RET_TRAP,
        Action::ScmpActErrno => RET_ERRNO | data,
        Action::ScmpActTrace => RET_TRACE | data,
        Action::ScmpActLog => RET_LOG,
        Action::ScmpActAllow => RET_ALLOW,
        Action::ScmpActNotify => return Err(SeccompError::Notify),
    })
}

fn add(
    syscall: &LinuxSyscall,
    default: u32,
    all: &mut Vec<Rule>,
    calls: &mut Vec<Call>,
) -> Result<(), SeccompError> {
    let verdict = verdict(syscall.action(), syscall.errno_ret())?;
    let first = all.len();
    all.extend(rules(syscall, verdict)?);
    for name in syscall.names() {
        match arch::syscall_number(name) {
            Some(number) => calls.extend((first..all.len()).map(|rule| (number, rule))),
            // A permission for a call that this architecture lacks cannot be used; a restriction of
            // a call nobody has ever heard of is a promise that cannot be kept.
            None if loosens(verdict, default) || FOREIGN.contains(&name.as_str()) => {}
            None => return Err(SeccompError::UnknownSyscall(name.clone())),
        }
    }
    Ok(())
}

/// Whether leaving out a rule with this verdict can only make the filter stricter.
fn loosens(verdict: u32, default: u32) -> bool {
    verdict == default || verdict == RET_ALLOW || (verdict == RET_LOG && default != RET_ALLOW)
}

/// Calls of other architectures (or long gone) that profiles like to forbid.
const FOREIGN: &[&str] = &[
    "_llseek",
    "_newselect",
    "_sysctl",
    "arch_prctl",
    "arm_fadvise64_64",
    "arm_sync_file_range",
    "bdflush",
    "break",
    "breakpoint",
    "cacheflush",
    "clock_adjtime64",
    "clock_getres_time64",
    "clock_gettime64",
    "clock_nanosleep_time64",
    "clock_settime64",
    "create_module",
    "fcntl64",
    "fstat64",
    "fstatat64",
    "fstatfs64",
    "ftime",
    "ftruncate64",
    "futex_time64",
    "get_kernel_syms",
    "get_mempolicy",
    "get_thread_area",
    "getegid32",
    "geteuid32",
    "getgid32",
    "getgroups32",
    "getpmsg",
    "getresgid32",
    "getresuid32",
    "getuid32",
    "gtty",
    "idle",
    "ioperm",
    "iopl",
    "ipc",
    "kexec_file_load",
    "lchown32",
    "lock",
    "lstat64",
    "mmap2",
    "modify_ldt",
    "mpx",
    "nfsservctl",
    "nice",
    "oldfstat",
    "oldlstat",
    "oldolduname",
    "oldstat",
    "olduname",
    "pciconfig_iobase",
    "pciconfig_read",
    "pciconfig_write",
    "prof",
    "profil",
    "putpmsg",
    "query_module",
    "readdir",
    "s390_pci_mmio_read",
    "s390_pci_mmio_write",
    "s390_runtime_instr",
    "security",
    "sendfile64",
    "set_thread_area",
    "set_tls",
    "setgid32",
    "setgroups32",
    "setregid32",
    "setresgid32",
    "setresuid32",
    "setreuid32",
    "setuid32",
    "sgetmask",
    "sigaction",
    "signal",
    "sigpending",
    "sigprocmask",
    "sigreturn",
    "sigsuspend",
    "socketcall",
    "ssetmask",
    "stat64",
    "statfs64",
    "stime",
    "stty",
    "switch_endian",
    "sync_file_range2",
    "sysfs",
    "truncate64",
    "tuxcall",
    "ugetrlimit",
    "ulimit",
    "umount",
    "uselib",
    "ustat",
    "vm86",
    "vm86old",
    "vserver",
    "waitpid",
];

fn rules(syscall: &LinuxSyscall, verdict: u32) -> Result<Vec<Rule>, SeccompError> {
    let args = syscall.args().as_deref().unwrap_or_default();
    let mut conditions = Vec::new();
    for arg in args {
        conditions.push(condition(arg).ok_or_else(|| SeccompError::Argument {
            name: syscall.names().first().cloned().unwrap_or_default(),
            index: arg.index(),
        })?);
    }
    let repeated =
        conditions.iter().enumerate().any(|(n, a)| conditions[..n].iter().any(|b| a.index == b.index));
    if repeated {
        // What engines agreed on: conditions on one and the same argument are alternatives.
        return Ok(conditions.into_iter().map(|one| Rule { conditions: vec![one], verdict }).collect());
    }
    Ok(vec![Rule { conditions, verdict }])
}

fn condition(arg: &LinuxSeccompArg) -> Option<Condition> {
    let index = u8::try_from(arg.index()).ok().filter(|index| *index < 6)?;
    Some(Condition { index, op: arg.op(), value: arg.value(), second: arg.value_two().unwrap_or(0) })
}

/// Ranges of numbers that share their rules: each begins at its number and ends before the next. A
/// profile names hundreds of calls by a few rules, so rules are copied for a range and not for a
/// call.
fn ranges(mut calls: Vec<Call>, all: &[Rule], default: u32) -> Vec<(u32, Vec<Rule>)> {
    calls.sort_unstable();
    let mut ranges: Vec<(u32, Vec<Rule>)> = vec![(0, Vec::new())];
    let mut push = |start: u32, rules: Vec<Rule>| match ranges.last_mut() {
        Some(last) if last.1 == rules => {}
        Some(last) if last.0 == start => last.1 = rules,
        _ => ranges.push((start, rules)),
    };
    let mut groups = calls.chunk_by(|one, next| one.0 == next.0).peekable();
    while let Some(group) = groups.next() {
        let Some((number, _)) = group.first() else { continue };
        push(*number, deciding(group, all, default));
        let mut end = number + 1;
        let same = |next: &&[Call], end: u32| {
            next.first().is_some_and(|(number, _)| *number == end)
                && next.iter().map(|call| call.1).eq(group.iter().map(|call| call.1))
        };
        while groups.next_if(|next| same(next, end)).is_some() {
            end += 1;
        }
        push(end, Vec::new());
    }
    // `push(n + 1, empty)` followed by `push(n + 1, rules)` replaced the former, which may equal
    // its new neighbour.
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
    ranges
}

/// The rules of one call, as far as they decide anything.
fn deciding(group: &[Call], all: &[Rule], default: u32) -> Vec<Rule> {
    let mut rules: Vec<Rule> = group.iter().filter_map(|(_, rule)| all.get(*rule)).cloned().collect();
    if let Some(end) = rules.iter().position(|rule| rule.conditions.is_empty()) {
        rules.truncate(end + 1);
    }
    // Rules at the tail that only repeat the default say nothing.
    while rules.last().is_some_and(|rule| rule.verdict == default) {
        rules.pop();
    }
    rules
}

fn dispatch(ranges: &[(u32, Vec<Rule>)], default: u32) -> Vec<Instruction> {
    let middle = ranges.len() / 2;
    let (Some((start, _)), true) = (ranges.get(middle), ranges.len() > 1) else {
        return ranges.first().map_or_else(|| vec![op(RET, default)], |(_, rules)| leaf(rules, default));
    };
    let left = dispatch(&ranges[..middle], default);
    let right = dispatch(&ranges[middle..], default);
    let mut code = Vec::with_capacity(left.len() + right.len() + 2);
    match u8::try_from(left.len()) {
        Ok(over) => code.push(jump(JGE, *start, over, 0)),
        Err(_) => {
            code.push(jump(JGE, *start, 0, 1));
            let over = u32::try_from(left.len()).expect("a profile has fewer rules than there are numbers");
            code.push(op(JA, over));
        }
    }
    code.extend(left);
    code.extend(right);
    code
}

fn leaf(rules: &[Rule], default: u32) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in rules {
        code.extend(rule_code(rule));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(op(RET, default));
    code
}

/// Falls through to the next rule unless every condition holds.
fn rule_code(rule: &Rule) -> Vec<Instruction> {
    let mut code = vec![op(RET, rule.verdict)];
    for condition in rule.conditions.iter().rev() {
        let rest = u8::try_from(code.len())
            .expect("six conditions of six instructions each are within a jump's reach");
        let mut block = condition_code(*condition, rest);
        block.extend(code);
        code = block;
    }
    code
}

/// Falls through when the condition holds; when it does not, jumps over the rest of the block and
/// `rest` more.
fn condition_code(condition: Condition, rest: u8) -> Vec<Instruction> {
    let offset = OFFSET_ARGS + 8 * u32::from(condition.index);
    let (low, high) = (op(LD, offset), op(LD, offset + 4));
    let halves = |value: u64| {
        let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
        (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
    };
    let (v_high, v_low) = halves(condition.value);
    match condition.op {
        Operator::ScmpCmpEq => {
            vec![high, jump(JEQ, v_high, 0, rest + 2), low, jump(JEQ, v_low, 0, rest)]
        }
        Operator::ScmpCmpNe => vec![high, jump(JEQ, v_high, 0, 2), low, jump(JEQ, v_low, rest, 0)],
        Operator::ScmpCmpGt => vec![
            high,
            jump(JGT, v_high, 3, 0),
            jump(JEQ, v_high, 0, rest + 2),
            low,
            jump(JGT, v_low, 0, rest),
        ],
        Operator::ScmpCmpGe => vec![
            high,
            jump(JGT, v_high, 3, 0),
            jump(JEQ, v_high, 0, rest + 2),
            low,
            jump(JGE, v_low, 0, rest),
        ],
        Operator::ScmpCmpLt => vec![
            high,
            jump(JGT, v_high, rest + 3, 0),
            jump(JEQ, v_high, 0, 2),
            low,
            jump(JGE, v_low, rest, 0),
        ],
        Operator::ScmpCmpLe => vec![
            high,
            jump(JGT, v_high, rest + 3, 0),
            jump(JEQ, v_high, 0, 2),
            low,
            jump(JGT, v_low, rest, 0),
        ],
        Operator::ScmpCmpMaskedEq => {
            let (w_high, w_low) = halves(condition.second);
            vec![
                high,
                op(AND, v_high),
                jump(JEQ, w_high, 0, rest + 3),
                low,
                op(AND, v_low),
                jump(JEQ, w_low, 0, rest),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel would answer: a small machine for classic BPF over `seccomp_data`.
    fn run(program: &[Instruction], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        counted(program, arch, nr, args).0
    }

    /// The same, and how many instructions it took.
    fn counted(program: &[Instruction], arch: u32, nr: u32, args: [u64; 6]) -> (u32, usize) {
        let mut data = Vec::new();
        data.extend(nr.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend([0; 8]);
        args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
        let (mut at, mut a, mut steps) = (0usize, 0u32, 0usize);
        loop {
            let i = program[at];
            at += 1;
            steps += 1;
            let hop = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                LD => {
                    let k = i.k as usize;
                    a = u32::from_le_bytes(data[k..k + 4].try_into().expect("four"));
                }
                AND => a &= i.k,
                JA => at += i.k as usize,
                JEQ => at += hop(a == i.k),
                JGT => at += hop(a > i.k),
                JGE => at += hop(a >= i.k),
                RET => return (i.k, steps),
                code => panic!("unknown code {code:#x}"),
            }
        }
    }

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).expect("a profile")
    }

    fn answer(json: &str, name: &str, args: [u64; 6]) -> u32 {
        let filter = compile(&profile(json)).expect("compiles");
        run(&filter.program, arch::AUDIT_ARCH, arch::syscall_number(name).expect(name), args)
    }

    #[test]
    fn an_allow_list_with_an_errno() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[{"names":["read","write","exit_group","socketcall","brand_new"],"action":"SCMP_ACT_ALLOW"},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":1},
            {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(answer(json, "read", [0; 6]), RET_ALLOW);
        assert_eq!(answer(json, "openat", [0; 6]), RET_ERRNO | 38);
        let filter = compile(&profile(&json.replace("\"defaultErrnoRet\":38,", ""))).expect("compiles");
        let at = |number| run(&filter.program, arch::AUDIT_ARCH, number, [0; 6]);
        assert_eq!(
            (at(arch::unknown_syscalls() - 1), at(arch::unknown_syscalls())),
            (RET_ERRNO | 1, RET_ERRNO | 38)
        );
        assert_eq!(answer(json, "clone3", [0; 6]), RET_ERRNO | 1);
        assert_eq!(answer(json, "personality", [8, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(answer(json, "personality", [8 | 1 << 40, 0, 0, 0, 0, 0]), RET_ERRNO | 38);
    }

    /// Every call of a container goes through it, and making it is on the way to a container's
    /// start.
    #[test]
    fn the_default_profile_makes_a_short_filter() {
        let filter =
            compile(&profile(include_str!("../../tests/containers/default-seccomp.json"))).expect("compiles");
        assert!(filter.program.len() <= 300, "{} instructions", filter.program.len());
        for call in arch::SYSCALLS.lines() {
            let number = call.split_once(' ').and_then(|(_, number)| number.parse().ok()).expect(call);
            let (_, steps) = counted(&filter.program, arch::AUDIT_ARCH, number, [0; 6]);
            // Those that look at an argument have one condition after the other.
            let most =
                if ["socket ", "personality "].iter().any(|name| call.starts_with(name)) { 50 } else { 18 };
            assert!(steps <= most, "{call}: {steps} instructions");
        }
    }

    #[test]
    fn other_architectures_end_the_process() {
        let filter =
            compile(&profile(r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[]}"#)).expect("compiles");
        assert_eq!(run(&filter.program, 0x4000_0003, 1, [0; 6]), RET_KILL_PROCESS);
        assert_eq!(run(&filter.program, arch::AUDIT_ARCH, 1, [0; 6]), RET_ALLOW);
        if let Some(foreign) = arch::FOREIGN_SYSCALLS {
            assert_eq!(run(&filter.program, arch::AUDIT_ARCH, foreign + 1, [0; 6]), RET_KILL_PROCESS);
        }
    }

    /// A debugger that skips a call, or a supervisor by ptrace(2).
    #[test]
    fn a_call_that_a_tracer_skips_is_let_through() {
        for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"] {
            let json = r#"{"defaultAction":"DEFAULT","syscalls":[]}"#.replace("DEFAULT", default);
            let filter = compile(&profile(&json)).expect("compiles");
            let at = |number| run(&filter.program, arch::AUDIT_ARCH, number, [0; 6]);
            assert_eq!(at(u32::MAX), RET_ALLOW, "{default}");
            if arch::FOREIGN_SYSCALLS.is_some() {
                assert_eq!(at(u32::MAX - 1), RET_KILL_PROCESS, "{default}");
            }
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_by_name() {
        let deny = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["NAME"],"action":"ACTION"}]}"#;
        let with = |name: &str, action: &str| {
            compile(&profile(&deny.replace("NAME", name).replace("ACTION", action))).err()
        };
        assert_eq!(
            with("frobnicate", "SCMP_ACT_KILL"),
            Some(SeccompError::UnknownSyscall("frobnicate".into()))
        );
        assert_eq!(with("vm86", "SCMP_ACT_KILL"), None);
        assert_eq!(with("read", "SCMP_ACT_NOTIFY"), Some(SeccompError::Notify));
        let args = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL",
            "args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(
            compile(&profile(args)).err(),
            Some(SeccompError::Argument { name: "read".into(), index: 6 })
        );
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(answer(json, "socket", [1, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(answer(json, "socket", [2, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(answer(json, "socket", [3, 0, 0, 0, 0, 0]), RET_ERRNO | 1);
    }

    fn holds(c: &Condition, arg: u64) -> bool {
        match c.op {
            Operator::ScmpCmpEq => arg == c.value,
            Operator::ScmpCmpNe => arg != c.value,
            Operator::ScmpCmpGt => arg > c.value,
            Operator::ScmpCmpGe => arg >= c.value,
            Operator::ScmpCmpLt => arg < c.value,
            Operator::ScmpCmpLe => arg <= c.value,
            Operator::ScmpCmpMaskedEq => arg & c.value == c.second,
        }
    }

    fn interesting() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..4u64,
            Just(u64::MAX),
            Just(1 << 32),
            Just((1 << 32) | 1),
            Just(u64::from(u32::MAX)),
            any::<u64>()
        ]
    }

    fn conditions() -> impl Strategy<Value = Vec<Condition>> {
        let operator = prop::sample::select(vec![
            Operator::ScmpCmpEq,
            Operator::ScmpCmpNe,
            Operator::ScmpCmpGt,
            Operator::ScmpCmpGe,
            Operator::ScmpCmpLt,
            Operator::ScmpCmpLe,
            Operator::ScmpCmpMaskedEq,
        ]);
        let one = (0..6u8, operator, interesting(), interesting())
            .prop_map(|(index, op, value, second)| Condition { index, op, value, second });
        prop::collection::vec(one, 0..4)
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_rules_say(
            all in prop::collection::vec((conditions(), 0..5u32), 1..8),
            calls in prop::collection::btree_map(0..40u32, prop::collection::btree_set(0..8usize, 0..4), 0..40),
            queries in prop::collection::vec((0..45u32, prop::array::uniform6(interesting())), 1..40),
        ) {
            let all: Vec<Rule> = all.into_iter()
                .map(|(conditions, errno)| Rule { conditions, verdict: RET_ERRNO | errno }).collect();
            let bound: Vec<Call> = calls.iter()
                .flat_map(|(number, own)| own.iter().filter(|rule| **rule < all.len()).map(|rule| (*number, *rule)))
                .collect();
            let program = dispatch(&ranges(bound.clone(), &all, RET_ERRNO), RET_ERRNO);
            let mut program_at_nr = vec![op(LD, OFFSET_NR)];
            program_at_nr.extend(program);
            for (number, args) in queries {
                let own = bound.iter().filter(|call| call.0 == number).map(|call| &all[call.1]);
                let expected = own.clone().find(|rule| {
                    rule.conditions.iter().all(|c| holds(c, args[usize::from(c.index)]))
                }).map_or(RET_ERRNO, |rule| rule.verdict);
                prop_assert_eq!(run(&program_at_nr, 0, number, args), expected);
            }
        }
    }
}

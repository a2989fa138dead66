//! A filter of system calls as a program that finds the number of a call by halves.
//!
//! The system runs a new filter once for each number that there is, to know which calls need no
//! run later. A program that compares with one number after the other makes that a matter of a
//! millisecond; here it is a tenth of that.

#![allow(unsafe_code, reason = "no crate asks whether there are filters, or sets one with flags")]

use std::collections::BTreeMap;
use std::io;

pub use seccompiler::BpfProgram;
use seccompiler::sock_filter;

/// Arguments that must be so, each by its place (0 to 5).
pub type Arguments = Vec<(u8, Must)>;

/// What an argument must be, of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// This.
    Be(u32),
    /// With these bits only.
    BeWithin(u32),
    /// This, whatever the other bits are, of which these are masked out.
    BeBut(u32, u32),
}

impl Must {
    /// What the argument must be, of these bits of it.
    fn value_and_bits(self) -> (u32, u32) {
        match self {
            Self::Be(value) => (value, u32::MAX),
            Self::BeWithin(bits) => (0, !bits),
            Self::BeBut(value, bits) => (value, !bits),
        }
    }
}

/// What the flags of clone(2) are when a C library makes a thread; a process has others. (One
/// library sets a bit besides that the system ignores.)
pub const MAKES_A_THREAD: Must = Must::BeBut(
    (libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID)
        .cast_unsigned(),
    libc::CLONE_DETACHED.cast_unsigned(),
);

/// Calls by their number, and in which ways each may be made.
pub type Calls = BTreeMap<u32, Ways>;

/// In which ways a call may be made.
#[derive(Clone, Debug)]
pub enum Ways {
    /// In every way.
    All,
    /// In these. None: not at all.
    These(Vec<Arguments>),
    /// In none, and it answers with this error: a caller has another way when the system does not
    /// know the call.
    Error(u16),
}

impl From<Vec<Arguments>> for Ways {
    /// None: in every way.
    fn from(ways: Vec<Arguments>) -> Self {
        if ways.is_empty() { Self::All } else { Self::These(ways) }
    }
}

/// What becomes of a call that is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A signal, whose handler says which call it was (see [`crate::denied`]).
    Signal,
    /// The error that the caller may not.
    Error,
}

impl Denial {
    fn action(self) -> u32 {
        match self {
            Self::Signal => TRAP,
            // EPERM
            Self::Error => ERROR | 1,
        }
    }
}

/// A signal to who makes the call (`SECCOMP_RET_TRAP`).
const TRAP: u32 = 0x0003_0000;
/// An error, whose number is added (`SECCOMP_RET_ERRNO`).
const ERROR: u32 = 0x0005_0000;
/// What a call of another architecture does (`SECCOMP_RET_KILL_PROCESS`).
const KILL: u32 = 0x8000_0000;
/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;

/// Where `struct seccomp_data` has the number, the architecture, and the lower half of the first
/// argument (on a machine that is little-endian), in bytes.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

// Instructions of classic BPF: load a word, and it with a constant, jump, return.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Numbers of calls for which the same is done.
struct Range<'a> {
    /// The first of them; the last is that before the next range.
    first: u32,
    /// How often it is looked for.
    weight: u32,
    verdict: Verdict<'a>,
}

/// So many numbers the system has at most, and tries once each when it installs a program.
const NUMBERS: u32 = 512;
/// A call with arguments that matter is looked for each time that it is made.
const LOOK_WEIGHS: u32 = 32;

/// What is done with a call.
#[derive(PartialEq)]
enum Verdict<'a> {
    Deny,
    Allow,
    Fail(u16),
    Look(&'a [Arguments]),
}

/// The program that allows these calls on this machine.
///
/// # Errors
/// This architecture is none whose numbers are known.
pub fn compile(calls: &Calls, denial: Denial) -> io::Result<BpfProgram> {
    // AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64
    let architecture = match std::env::consts::ARCH {
        "x86_64" => 0xc000_003e,
        "aarch64" => 0xc000_00b7,
        other => return Err(io::Error::other(format!("no filter is known for {other}"))),
    };
    Ok(compile_for(calls, architecture, denial))
}

/// Whose calls a program decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// This thread's, and those of threads that it makes.
    This,
    /// All of the process.
    All,
}

/// What becomes of the processor's speculation in threads that have a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    /// Linux before 5.16 turns off much of it, against threads that read each other's memory by it.
    AsTheSystemHasIt,
    /// It stays: for a thread that runs a guest, to which that would cost more than the program.
    Kept,
}

/// Has a program decide from now on what threads may ask of the system. There is no way back;
/// several programs hold together.
///
/// # Errors
/// The system's refusal; the thread has not given up to get new rights (see
/// [`crate::privilege::keep_down`]); another thread has a program that this one has not.
pub fn install(program: &BpfProgram, threads: Threads, speculation: Speculation) -> io::Result<()> {
    let flags = match threads {
        Threads::This => 0,
        Threads::All => libc::SECCOMP_FILTER_FLAG_TSYNC,
    };
    match speculation {
        Speculation::AsTheSystemHasIt => set(program, flags),
        Speculation::Kept => match set(program, flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) {
            // Systems before Linux 4.17 do not know it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set(program, flags),
            set => set,
        },
    }
}

fn set(program: &BpfProgram, flags: libc::c_ulong) -> io::Result<()> {
    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        len: u16,
        instructions: *const sock_filter,
    }
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = Program { len, instructions: program.as_ptr() };
    // SAFETY: the system reads the program, which outlives the call, and copies it.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match answer {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} has a list of its own"))),
    }
}

/// Whether this system has such programs, and what they do with a call that is denied.
#[must_use]
pub fn available() -> bool {
    let action = TRAP;
    // SAFETY: the call reads one number.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0_usize, &raw const action)
    };
    answer == 0
}

/// `architecture` is the system's number for this one (`AUDIT_ARCH_*`).
fn compile_for(calls: &Calls, architecture: u32, denial: Denial) -> BpfProgram {
    let mut ranges = vec![Range { first: 0, weight: 0, verdict: Verdict::Deny }];
    let mut add = |first, verdict| match ranges.last_mut() {
        Some(last) if last.verdict == verdict => {}
        // It follows others at once.
        Some(last) if last.first == first => last.verdict = verdict,
        _ => ranges.push(Range { first, weight: 0, verdict }),
    };
    for (&number, ways) in calls {
        add(
            number,
            match ways {
                Ways::All => Verdict::Allow,
                Ways::Error(error) => Verdict::Fail(*error),
                Ways::These(ways) => Verdict::Look(ways),
            },
        );
        // The last number that there is has nothing behind it.
        if let Some(next) = number.checked_add(1) {
            add(next, Verdict::Deny);
        }
    }
    ranges.dedup_by(|next, last| next.verdict == last.verdict);
    let ends: Vec<u32> = ranges.iter().skip(1).map(|range| range.first).chain([u32::MAX]).collect();
    for (range, end) in ranges.iter_mut().zip(ends) {
        let looks = if matches!(range.verdict, Verdict::Look(_)) { LOOK_WEIGHS } else { 0 };
        range.weight = (end - range.first).min(NUMBERS) + looks;
    }
    let mut program = Backwards::new(denial.action());
    let start = program.halves(&ranges);
    program.before(start);
    program.push(statement(LOAD, NUMBER));
    let start = program.len();
    program.push(statement(RETURN, KILL));
    program.branch(IF_EQUAL, architecture, start, start + 1);
    program.push(statement(LOAD, ARCHITECTURE));
    program.finish()
}

/// A program from its end to its beginning, for jumps lead forwards only: what a jump leads to is
/// there already, and is called by how many instructions there are from it to the end. Few
/// instructions are wanted: the system checks, translates and tries each of them when it installs
/// the program. So all that is allowed ends at one instruction, and so does what is denied.
struct Backwards(BpfProgram);

/// How many instructions there are from this one to the end, itself among them.
type FromEnd = usize;

impl Backwards {
    const ALLOWED: FromEnd = 1;
    const DENIED: FromEnd = 2;

    fn new(denied: u32) -> Self {
        Self(vec![statement(RETURN, ALLOW), statement(RETURN, denied)])
    }

    fn finish(mut self) -> BpfProgram {
        self.0.reverse();
        self.0
    }

    fn len(&self) -> FromEnd {
        self.0.len()
    }

    fn push(&mut self, instruction: sock_filter) -> FromEnd {
        self.0.push(instruction);
        self.len()
    }

    /// What is pushed next goes on at `target`.
    fn before(&mut self, target: FromEnd) {
        if self.len() != target {
            let past = u32::try_from(self.len() - target).expect("a program has few instructions");
            self.push(statement(JUMP, past));
        }
    }

    /// Goes on at `yes` or `no`.
    fn branch(&mut self, code: u16, value: u32, yes: FromEnd, no: FromEnd) -> FromEnd {
        let (mut yes, mut no) = (yes, no);
        for target in [&mut yes, &mut no] {
            // A branch does not reach further; another jump may come before it.
            if self.len() + 1 - *target > usize::from(u8::MAX) {
                self.before(*target);
                *target = self.len();
            }
        }
        let past = |target| u8::try_from(self.len() - target).expect("it was made to be near");
        let (yes, no) = (past(yes), past(no));
        self.push(branch(code, value, yes, no))
    }

    /// Finds the range that a number is in: what is tried for many numbers, or each time that a
    /// call is made, in few steps.
    fn halves(&mut self, ranges: &[Range<'_>]) -> FromEnd {
        match ranges {
            [] => Self::DENIED,
            [range] => self.leaf(&range.verdict),
            ranges => {
                let whole: u32 = ranges.iter().map(|range| range.weight).sum();
                let mut below = 0;
                let uneven = |middle: usize| {
                    below += ranges[middle - 1].weight;
                    (whole.abs_diff(2 * below), middle)
                };
                let (_, middle) = (1..ranges.len()).map(uneven).min().expect("there are two or more");
                let (below, above) = ranges.split_at(middle);
                let first = above[0].first;
                let (below, above) = (self.halves(below), self.halves(above));
                self.branch(IF_AT_LEAST, first, above, below)
            }
        }
    }

    fn leaf(&mut self, verdict: &Verdict<'_>) -> FromEnd {
        match verdict {
            Verdict::Deny => Self::DENIED,
            Verdict::Allow => Self::ALLOWED,
            Verdict::Fail(error) => self.push(statement(RETURN, ERROR | u32::from(*error))),
            Verdict::Look(ways) => {
                let ways: Vec<&[_]> = ways.iter().map(Vec::as_slice).collect();
                self.ways(&ways, Self::DENIED)
            }
        }
    }

    /// Allows a call that is made in one of these ways. What several begin with is looked at once.
    fn ways(&mut self, ways: &[&[(u8, Must)]], otherwise: FromEnd) -> FromEnd {
        let groups: Vec<_> = ways.chunk_by(|one, next| one.first() == next.first()).collect();
        // Where the next group begins, and where it does for who has its argument already.
        let (mut next, mut held) = (otherwise, None);
        for (place, group) in groups.iter().enumerate().rev() {
            let Some(&(number, must)) = group[0].first() else {
                // No argument matters.
                (next, held) = (Self::ALLOWED, None);
                continue;
            };
            let fits = if decides(group) {
                Self::ALLOWED
            } else {
                let more: Vec<_> = group.iter().map(|way| &way[1..]).collect();
                self.ways(&more, next)
            };
            let (value, bits) = must.value_and_bits();
            let fails = match held {
                Some((same, at)) if same == (number, bits) => at,
                _ => next,
            };
            next = self.branch(IF_EQUAL, value, fits, fails);
            held = Some(((number, bits), next));
            let before = place.checked_sub(1).map(|before| groups[before]);
            let has_it = |before: &[&[(u8, Must)]]| {
                let first = before[0].first();
                let first = first.map(|(number, must)| (*number, must.value_and_bits().1));
                decides(before) && first == Some((number, bits))
            };
            if before.is_some_and(has_it) {
                // Nobody comes without it.
                continue;
            }
            if bits != u32::MAX {
                self.push(statement(AND, bits));
            }
            next = self.push(statement(LOAD, ARGUMENTS + 8 * u32::from(number)));
        }
        next
    }
}

/// Whether the first argument alone decides of ways that all begin with it.
fn decides(group: &[&[(u8, Must)]]) -> bool {
    group.iter().any(|way| way.len() == 1)
}

fn statement(code: u16, k: u32) -> sock_filter {
    branch(code, k, 0, 0)
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: u32 = 0xc000_003e;

    /// What the system does with a program, and in how many steps.
    fn run(program: &BpfProgram, architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            _ => {
                let place = usize::try_from((offset - ARGUMENTS) / 8).unwrap();
                assert_eq!((offset - ARGUMENTS) % 8, 0);
                u32::try_from(arguments[place] & u64::from(u32::MAX)).unwrap()
            }
        };
        let (mut a, mut at) = (0, 0);
        for steps in 1.. {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let (yes, no) = (usize::from(jt), usize::from(jf));
            match code {
                LOAD => a = word(k),
                AND => a &= k,
                JUMP => at += usize::try_from(k).unwrap(),
                IF_EQUAL => at += if a == k { yes } else { no },
                IF_AT_LEAST => at += if a >= k { yes } else { no },
                RETURN => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
        unreachable!()
    }

    fn allows(calls: &Calls, number: u32, arguments: [u64; 6]) -> bool {
        let is = |&(place, must): &(u8, Must)| {
            let [a, b, c, d, ..] = arguments[usize::from(place)].to_le_bytes();
            let value = u32::from_le_bytes([a, b, c, d]);
            match must {
                Must::Be(wanted) => value == wanted,
                Must::BeWithin(bits) => value & !bits == 0,
                Must::BeBut(wanted, bits) => value & !bits == wanted,
            }
        };
        match calls.get(&number) {
            Some(Ways::All) => true,
            Some(Ways::These(ways)) => ways.iter().any(|way| way.iter().all(is)),
            Some(Ways::Error(_)) | None => false,
        }
    }

    fn must() -> impl Strategy<Value = Must> {
        prop_oneof![
            (0..4_u32).prop_map(Must::Be),
            (0..4_u32).prop_map(Must::BeWithin),
            // A value with a bit that is masked out is none that could be.
            (0..4_u32, 0..4_u32).prop_map(|(value, bits)| Must::BeBut(value & !bits, bits)),
        ]
    }

    fn calls() -> impl Strategy<Value = Calls> {
        let numbers = prop_oneof![0..40_u32, u32::MAX - 3..=u32::MAX];
        let way = proptest::collection::vec(
            // Ways often begin with the same argument.
            (prop_oneof![Just(1_u8), 0..6_u8], must()),
            0..4,
        );
        let ways = prop_oneof![
            Just(Ways::All),
            Just(Ways::Error(38)),
            proptest::collection::vec(way, 1..12).prop_map(Ways::These)
        ];
        proptest::collection::btree_map(numbers, ways, 0..30)
    }

    proptest! {
        #[test]
        fn a_program_says_what_its_list_says(
            calls in calls(),
            arguments in proptest::array::uniform6(prop_oneof![0..5_u64, any::<u64>()]),
        ) {
            let program = compile_for(&calls, HERE, Denial::Signal);
            let gentle = compile_for(&calls, HERE, Denial::Error);
            for number in (0..45).chain(u32::MAX - 5..=u32::MAX).chain([1 << 30, 1 << 31]) {
                let (expected, gently) = match calls.get(&number) {
                    Some(Ways::Error(error)) => (ERROR | u32::from(*error), ERROR | u32::from(*error)),
                    _ if allows(&calls, number, arguments) => (ALLOW, ALLOW),
                    _ => (TRAP, ERROR | 1),
                };
                prop_assert_eq!(run(&program, HERE, number, arguments).0, expected, "{}", number);
                prop_assert_eq!(run(&gentle, HERE, number, arguments).0, gently, "{}", number);
                prop_assert_eq!(run(&program, HERE ^ 1, number, arguments).0, KILL);
            }
        }
    }

    #[test]
    fn it_is_long_where_it_has_to_be_and_short_on_its_way() {
        // Every second number with ways of its own: thousands of instructions, branches beyond 255.
        let way = |bit| vec![(0, Must::BeBut(1, bit)), (5, Must::Be(7))];
        let ways = vec![way(2), way(4), way(8)];
        let calls: Calls = (0..180).map(|number| (2 * number, Ways::These(ways.clone()))).collect();
        let program = compile_for(&calls, HERE, Denial::Signal);
        assert!((2000..4096).contains(&program.len()), "{}", program.len());
        for number in 0..410 {
            for (arguments, fits) in [([3, 0, 0, 0, 0, 7], true), ([3, 0, 0, 0, 0, 6], false)] {
                let expected = if fits && number < 360 && number % 2 == 0 { ALLOW } else { TRAP };
                assert_eq!(run(&program, HERE, number, arguments).0, expected, "{number}");
            }
        }
        // A call that may be made in every way, or not at all, is known in so few steps.
        let calls: Calls = (0..64).map(|number| (3 * number, Ways::All)).collect();
        let program = compile_for(&calls, HERE, Denial::Signal);
        let most = (0..500).map(|number| run(&program, HERE, number, [0; 6]).1).max();
        assert!(most <= Some(4 + 8), "{most:?}");
        // Numbers that follow each other are one range.
        let calls: Calls = (10..20).map(|number| (number, Ways::All)).collect();
        assert_eq!(compile_for(&calls, HERE, Denial::Signal).len(), 4 + 2 + 2);
    }
}

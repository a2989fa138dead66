//! A filter as a program that finds the number of a call by halves.
//!
//! The system runs a new filter once for each number that there is, to know which calls need no
//! run later. A program that compares with one number after the other makes that a matter of a
//! millisecond; here it is a tenth of that.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// Arguments that must be so, each by its place (0 to 5).
pub(super) type Arguments = Vec<(u8, Must)>;

/// What an argument must be, of 32 bits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Must {
    /// This.
    Be(u32),
    /// With these bits only.
    BeWithin(u32),
    /// This, whatever the other bits are, of which these are masked out.
    BeBut(u32, u32),
}

/// Calls by their number, and in which ways each may be made; none: in every way.
pub(super) type Calls = BTreeMap<u32, Vec<Arguments>>;

/// What a denied call does (`SECCOMP_RET_TRAP`): a signal, whose handler says which call it was.
const TRAP: u32 = 0x0003_0000;
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

/// What is done with numbers from some on, up to where the next such range begins.
enum Verdict<'a> {
    Deny,
    Allow,
    Look(&'a [Arguments]),
}

/// The program that allows these calls. `architecture` is the system's number for this one
/// (`AUDIT_ARCH_*`).
pub(super) fn compile(calls: &Calls, architecture: u32) -> BpfProgram {
    let mut ranges: Vec<(u32, Verdict<'_>)> = vec![(0, Verdict::Deny)];
    for (&number, ways) in calls {
        match ranges.last() {
            // It follows others at once.
            Some((first, Verdict::Deny)) if *first == number => drop(ranges.pop()),
            _ => {}
        }
        match (ranges.last(), ways.as_slice()) {
            (Some((_, Verdict::Allow)), []) => {}
            (_, []) => ranges.push((number, Verdict::Allow)),
            (_, ways) => ranges.push((number, Verdict::Look(ways))),
        }
        // The last number that there is has nothing behind it.
        if let Some(next) = number.checked_add(1) {
            ranges.push((next, Verdict::Deny));
        }
    }
    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        branch(IF_EQUAL, architecture, 1, 0),
        statement(RETURN, KILL),
        statement(LOAD, NUMBER),
    ];
    program.extend(halves(&ranges));
    program
}

/// Finds the range that a number is in.
fn halves(ranges: &[(u32, Verdict<'_>)]) -> BpfProgram {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    if below.is_empty() {
        return above.first().map_or_else(|| vec![statement(RETURN, TRAP)], |(_, verdict)| leaf(verdict));
    }
    let (first, below, above) = (above[0].0, halves(below), halves(above));
    let mut program = match u8::try_from(below.len()) {
        Ok(len) => vec![branch(IF_AT_LEAST, first, len, 0)],
        // Branches do not reach that far.
        Err(_) => {
            vec![branch(IF_AT_LEAST, first, 0, 1), statement(JUMP, distance(below.len()))]
        }
    };
    program.extend(below);
    program.extend(above);
    program
}

fn leaf(verdict: &Verdict<'_>) -> BpfProgram {
    let ways = match verdict {
        Verdict::Deny => return vec![statement(RETURN, TRAP)],
        Verdict::Allow => return vec![statement(RETURN, ALLOW)],
        Verdict::Look(ways) => *ways,
    };
    let mut program: BpfProgram = ways.iter().flat_map(way).collect();
    program.push(statement(RETURN, TRAP));
    program
}

/// Allows the call if all arguments are as they must be, and goes on behind itself otherwise.
fn way(arguments: &Arguments) -> BpfProgram {
    // From behind, so that each branch knows how far it is to the end.
    let mut program = vec![statement(RETURN, ALLOW)];
    for &(place, must) in arguments.iter().rev() {
        let (value, bits) = match must {
            Must::Be(value) => (value, None),
            Must::BeWithin(bits) => (0, Some(!bits)),
            Must::BeBut(value, bits) => (value, Some(!bits)),
        };
        let past = distance(program.len());
        program.insert(0, branch(IF_EQUAL, value, 0, past));
        if let Some(bits) = bits {
            program.insert(0, statement(AND, bits));
        }
        program.insert(0, statement(LOAD, ARGUMENTS + 8 * u32::from(place)));
    }
    program
}

/// How far a jump goes.
fn distance<T: TryFrom<usize>>(len: usize) -> T {
    T::try_from(len)
        .unwrap_or_else(|_| panic!("a bug: lists of calls are short, and so is each of their ways"))
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
        calls.get(&number).is_some_and(|ways| ways.is_empty() || ways.iter().any(|way| way.iter().all(is)))
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
        let way = proptest::collection::vec((0..6_u8, must()), 1..4);
        let ways = prop_oneof![Just(Vec::new()), proptest::collection::vec(way, 1..12)];
        proptest::collection::btree_map(numbers, ways, 0..30)
    }

    proptest! {
        #[test]
        fn a_program_says_what_its_list_says(
            calls in calls(),
            arguments in proptest::array::uniform6(prop_oneof![0..5_u64, any::<u64>()]),
        ) {
            let program = compile(&calls, HERE);
            for number in (0..45).chain(u32::MAX - 5..=u32::MAX).chain([1 << 30, 1 << 31]) {
                let expected = if allows(&calls, number, arguments) { ALLOW } else { TRAP };
                prop_assert_eq!(run(&program, HERE, number, arguments).0, expected, "{}", number);
                prop_assert_eq!(run(&program, HERE ^ 1, number, arguments).0, KILL);
            }
        }
    }

    #[test]
    fn it_is_long_where_it_has_to_be_and_short_on_its_way() {
        // Every second number with ways of its own: thousands of instructions, branches beyond 255.
        let ways = vec![vec![(0, Must::BeBut(1, 2)), (5, Must::Be(7))]; 3];
        let calls: Calls = (0..180).map(|number| (2 * number, ways.clone())).collect();
        let program = compile(&calls, HERE);
        assert!((2000..4096).contains(&program.len()), "{}", program.len());
        for number in 0..410 {
            for (arguments, fits) in [([3, 0, 0, 0, 0, 7], true), ([3, 0, 0, 0, 0, 6], false)] {
                let expected = if fits && number < 360 && number % 2 == 0 { ALLOW } else { TRAP };
                assert_eq!(run(&program, HERE, number, arguments).0, expected, "{number}");
            }
        }
        // A call that may be made in every way, or not at all, is known in so few steps.
        let calls: Calls = (0..64).map(|number| (3 * number, Vec::new())).collect();
        let program = compile(&calls, HERE);
        let most = (0..500).map(|number| run(&program, HERE, number, [0; 6]).1).max();
        assert!(most <= Some(4 + 8), "{most:?}");
        // Numbers that follow each other are one range.
        let calls: Calls = (10..20).map(|number| (number, Vec::new())).collect();
        assert_eq!(compile(&calls, HERE).len(), 4 + 2 + 3);
    }
}

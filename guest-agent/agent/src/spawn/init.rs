//! The program that the small init of a container is: the agent's own, under another name. It is
//! executed from memory, so that nothing of the agent's is in what the container's processes may
//! look into, and does nothing but wait and forward.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use super::seccomp::SeccompFilter;
use crate::sys::{self, Blocked, Instruction};

/// The first word of its command line.
pub const NAME: &str = "nelly-init";

/// Bytes of an instruction of a filter.
const INSTRUCTION: usize = 8;

/// The program, from the first container with an init on.
static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();

/// The program, open to be executed.
///
/// # Errors
/// It cannot be copied.
pub(super) fn program() -> io::Result<BorrowedFd<'static>> {
    if PROGRAM.get().is_none() {
        // The agent has one thread.
        let _first = PROGRAM.set(sys::own_program()?);
    }
    Ok(PROGRAM.get().expect("it was set").as_fd())
}

/// A filter as the init reads it: its flags, then its instructions, of eight bytes each.
pub(super) fn encoded(filter: &SeccompFilter) -> Vec<u8> {
    let mut bytes = filter.flags.to_ne_bytes().to_vec();
    for Instruction { code, jt, jf, k } in &filter.program {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([*jt, *jf]);
        bytes.extend(k.to_ne_bytes());
    }
    bytes
}

/// The filter of such bytes; no bytes are no filter. Nothing if it is none.
fn decoded(bytes: &[u8]) -> Option<Option<SeccompFilter>> {
    if bytes.is_empty() {
        return Some(None);
    }
    let (flags, rest) = bytes.split_first_chunk()?;
    let (instructions, []) = rest.as_chunks::<INSTRUCTION>() else { return None };
    let program = instructions.iter().map(|[a, b, jt, jf, k @ ..]| Instruction {
        code: u16::from_ne_bytes([*a, *b]),
        jt: *jt,
        jf: *jf,
        k: u32::from_ne_bytes(*k),
    });
    Some(Some(SeccompFilter { program: program.collect(), flags: u32::from_ne_bytes(*flags) }))
}

/// What a program that is to be an init does, before anything else: answers its exit code. Nothing
/// in every other program. Its words are its name, the process id of its child, and the numbers of
/// the descriptors where it reads its filter and of the one that it closes when it is an init.
#[must_use]
pub fn asked() -> Option<i32> {
    let mut words = std::env::args_os();
    if words.next()? != NAME {
        return None;
    }
    let mut number = || words.next()?.to_str()?.parse().ok().filter(|number: &i32| *number > 0);
    let numbers = (number(), number(), number());
    let (Some(child), Some(filter), Some(ready)) = numbers else { return Some(125) };
    if filter == ready {
        return Some(125);
    }
    Some(stay(child, filter, ready).unwrap_or(125))
}

fn stay(child: i32, filter: i32, ready: i32) -> io::Result<i32> {
    sys::set_not_dumpable()?;
    sys::name_process(c"init")?;
    // Whoever executed this program has blocked them before it made the child.
    let blocked = Blocked::all()?;
    let (filter, ready) = (sys::inherited(filter), sys::inherited(ready));
    let mut bytes = Vec::new();
    File::from(filter.ok_or(io::ErrorKind::NotFound)?).read_to_end(&mut bytes)?;
    let filter = decoded(&bytes).ok_or(io::ErrorKind::InvalidData)?;
    drop(bytes);
    // Before its filter, which may forbid to close anything.
    drop(ready);
    if let Some(filter) = filter {
        sys::install_seccomp(&filter.program, filter.flags)?;
    }
    Ok(sys::stay_as_init(&blocked, child))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_comes_out_as_it_went_in() {
        let one = |code, jt, jf, k| Instruction { code, jt, jf, k };
        let program = vec![one(0x20, 0, 0, 4), one(0x15, 255, 1, 0xc000_003e), one(6, 0, 0, 0x7fff_0000)];
        let filter = SeccompFilter { program, flags: 5 };
        let bytes = encoded(&filter);
        assert_eq!(decoded(&bytes), Some(Some(filter)));
        assert_eq!(decoded(b""), Some(None));
        for cut in [1, 3, 5, bytes.len() - 1] {
            assert_eq!(decoded(&bytes[..cut]), None, "{cut}");
        }
    }
}

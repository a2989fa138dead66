//! What differs between processor architectures, as data, and the one instruction that does.

mod counter;

pub use counter::counter;

/// System calls as lines of `name number`, in the order of their numbers.
#[cfg(target_arch = "x86_64")]
pub const SYSCALLS: &str = include_str!("syscalls-x86_64.txt");
/// System calls as lines of `name number`, in the order of their numbers.
#[cfg(target_arch = "aarch64")]
pub const SYSCALLS: &str = include_str!("syscalls-aarch64.txt");

/// What seccomp filters see as `seccomp_data.arch` (linux/audit.h).
#[cfg(target_arch = "x86_64")]
pub const AUDIT_ARCH: u32 = 0xc000_003e;
/// What seccomp filters see as `seccomp_data.arch` (linux/audit.h).
#[cfg(target_arch = "aarch64")]
pub const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Numbers from here on belong to another calling convention of the same architecture (x32), if
/// there is one.
#[cfg(target_arch = "x86_64")]
pub const FOREIGN_SYSCALLS: Option<u32> = Some(0x4000_0000);
/// Numbers from here on belong to another calling convention of the same architecture (x32), if
/// there is one.
#[cfg(target_arch = "aarch64")]
pub const FOREIGN_SYSCALLS: Option<u32> = None;

/// A system call's name and number.
type Call = (&'static str, u32);

/// In the order of the names. Made by the compiler: a filter asks for hundreds of names, between a
/// container's request and its start.
static BY_NAME: [Call; lines(SYSCALLS)] = by_name(SYSCALLS);

const fn lines(text: &str) -> usize {
    let (bytes, mut at, mut count) = (text.as_bytes(), 0, 0);
    while at < bytes.len() {
        if bytes[at] == b'\n' {
            count += 1;
        }
        at += 1;
    }
    count
}

const fn before(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() {
        if one[at] != other[at] {
            return one[at] < other[at];
        }
        at += 1;
    }
    one.len() < other.len()
}

#[allow(clippy::cast_lossless, reason = "`From` is not there for the compiler's own arithmetic")]
const fn by_name<const COUNT: usize>(text: &'static str) -> [Call; COUNT] {
    let mut calls = [("", 0); COUNT];
    let mut rest = text.as_bytes();
    let mut filled = 0;
    while filled < COUNT {
        let mut end = 0;
        while rest[end] != b' ' {
            end += 1;
        }
        let (name, tail) = rest.split_at(end);
        let (mut at, mut number) = (1, 0);
        while tail[at] != b'\n' {
            number = number * 10 + (tail[at] - b'0') as u32;
            at += 1;
        }
        rest = tail.split_at(at + 1).1;
        let mut place = filled;
        while place > 0 && before(name, calls[place - 1].0.as_bytes()) {
            calls[place] = calls[place - 1];
            place -= 1;
        }
        let Ok(name) = std::str::from_utf8(name) else { panic!("the names of system calls are ASCII") };
        calls[place] = (name, number);
        filled += 1;
    }
    calls
}

/// The number of a system call of this architecture, or nothing when it has none of that name.
#[must_use]
pub fn syscall_number(name: &str) -> Option<u32> {
    let place = BY_NAME.binary_search_by_key(&name, |(known, _)| known).ok()?;
    BY_NAME.get(place).map(|(_, number)| *number)
}

/// The number after the last one that is known here.
#[must_use]
pub fn unknown_syscalls() -> u32 {
    BY_NAME.iter().fold(0, |most, (_, number)| most.max(number + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_the_c_library() {
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
            ("mount", libc::SYS_mount),
            ("newfstatat", libc::SYS_newfstatat),
            ("mmap", libc::SYS_mmap),
        ] {
            assert_eq!(syscall_number(name).map(i64::from), Some(number), "{name}");
        }
        assert_eq!(syscall_number("rea"), None);
        assert_eq!(syscall_number("no_such_call"), None);
    }

    #[test]
    fn every_line_has_a_name_and_a_rising_number() {
        let mut last = None;
        for line in SYSCALLS.lines() {
            let (name, number) = line.split_once(' ').expect(line);
            let number: u32 = number.parse().expect(line);
            assert!(!name.is_empty() && last < Some(number), "{line}");
            last = Some(number);
        }
        assert!(last > Some(400));
        assert_eq!(Some(unknown_syscalls()), last.map(|last| last + 1));
    }
}

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

/// Numbers from here on belong to another calling convention of the same architecture (x32), if there is one.
#[cfg(target_arch = "x86_64")]
pub const FOREIGN_SYSCALLS: Option<u32> = Some(0x4000_0000);
/// Numbers from here on belong to another calling convention of the same architecture (x32), if there is one.
#[cfg(target_arch = "aarch64")]
pub const FOREIGN_SYSCALLS: Option<u32> = None;

/// The number of a system call of this architecture, or nothing when it has none of that name.
#[must_use]
pub fn syscall_number(name: &str) -> Option<u32> {
    SYSCALLS.lines().find_map(|line| {
        let (known, number) = line.split_once(' ')?;
        if known == name { number.parse().ok() } else { None }
    })
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
    }
}

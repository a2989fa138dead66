//! Finds out why the kernel did not execute a file, from the file's first bytes.

/// Number of bytes of the file that are needed.
pub const HEAD: usize = 20;

const MAGIC: &[u8] = b"\x7fELF";
/// `e_ident[EI_CLASS]`: 1 is 32 bits, 2 is 64.
const CLASS_AT: usize = 4;
const CLASS_32: u8 = 1;

/// Describes the program that begins with `head`, if the guest cannot run programs of its type.
#[must_use]
pub fn foreign(head: &[u8]) -> Option<String> {
    if !head.starts_with(MAGIC) {
        return None;
    }
    let machine = match head.get(18..HEAD)? {
        [low, high] => u16::from_le_bytes([*low, *high]),
        _ => return None,
    };
    let name = match machine {
        3 => "i386".to_owned(),
        40 => "arm".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv".to_owned(),
        other => format!("machine {other}"),
    };
    if head.get(CLASS_AT) == Some(&CLASS_32) {
        return Some(format!("is a 32-bit program ({name}); the guest runs 64-bit programs only"));
    }
    let here = std::env::consts::ARCH;
    (name != here).then(|| format!("is a program for {name}; the guest is {here}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(class: u8, machine: u16) -> Vec<u8> {
        let mut head = b"\x7fELF\0\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\0\0".to_vec();
        head[4] = class;
        head[18..].copy_from_slice(&machine.to_le_bytes());
        head
    }

    #[test]
    fn programs_that_the_guest_cannot_run_are_named() {
        let of = |class, machine| foreign(&head(class, machine));
        assert_eq!(
            of(1, 3).as_deref(),
            Some("is a 32-bit program (i386); the guest runs 64-bit programs only")
        );
        assert_eq!(
            of(1, 40).as_deref(),
            Some("is a 32-bit program (arm); the guest runs 64-bit programs only")
        );
        assert!(of(1, 62).is_some_and(|text| text.contains("(x86_64)")), "x32");
        assert!(of(2, 22).is_some_and(|text| text.starts_with("is a program for machine 22; ")));
        let here = if std::env::consts::ARCH == "x86_64" { 62 } else { 183 };
        assert_eq!(of(2, here), None);
        assert_eq!(foreign(b"#!/bin/sh\n"), None);
        assert_eq!(foreign(&head(1, 3)[..19]), None);
        assert_eq!(foreign(b""), None);
    }
}

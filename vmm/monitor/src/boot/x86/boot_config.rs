//! Kernel arguments that a command line has no room for: a boot configuration behind the initrd
//! (Linux's `Documentation/admin-guide/bootconfig.rst`), whose arguments Linux puts before those of
//! the command line. A kernel with `CONFIG_BOOT_CONFIG` looks for it when its command line has the
//! word [`WORD`].

use crate::sys::fits;

/// What the command line says of it.
pub(super) const WORD: &str = "bootconfig ";
/// What a boot configuration ends with.
const MAGIC: &[u8] = b"#BOOTCONFIG\n";
/// Most bytes that a loader may have put behind it to align an initrd.
const PADDING: usize = 3;

/// Bytes at the end of an initrd by which [`is_at_end`] knows.
pub(super) const TAIL: usize = MAGIC.len() + PADDING;

/// Whether an initrd with these bytes at its end has a boot configuration already: Linux reads one.
pub(super) fn is_at_end(tail: &[u8]) -> bool {
    tail.windows(MAGIC.len()).any(|window| window == MAGIC)
}

/// What goes behind an initrd of `initrd_len` bytes, so that the kernel has the argument `name`
/// once with each of `values`. Neither holds a quotation mark.
pub(super) fn trailer(name: &str, values: &[String], initrd_len: u64) -> Vec<u8> {
    let mut bytes = format!("kernel.{name} = \"{}\"\n", values.join("\", \"")).into_bytes();
    // What follows is aligned; this padding is part of the text.
    while !(initrd_len.wrapping_add(bytes.len() as u64)).is_multiple_of(4) {
        bytes.push(0);
    }
    let sum = bytes.iter().fold(0_u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
    let size: u32 = fits(bytes.len(), "arguments of a machine's devices are some KiB");
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(MAGIC);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_its_size_its_sum_and_the_mark() {
        let values = ["4K@0x1000:5".to_owned(), "4K@0x2000:6".to_owned()];
        let text = b"kernel.a.b = \"4K@0x1000:5\", \"4K@0x2000:6\"\n";
        for initrd_len in 0..8 {
            let bytes = trailer("a.b", &values, initrd_len);
            assert_eq!((initrd_len + bytes.len() as u64) % 4, 0);
            assert!(bytes.starts_with(text) && bytes.ends_with(b"#BOOTCONFIG\n"));
            let (config, rest) = bytes.split_at(bytes.len() - 20);
            assert!(config.len() < text.len() + 4 && config[text.len()..].iter().all(|&byte| byte == 0));
            let sum: u32 = config.iter().map(|&byte| u32::from(byte)).sum();
            assert_eq!(rest[..4], u32::try_from(config.len()).unwrap().to_le_bytes());
            assert_eq!(rest[4..8], sum.to_le_bytes());
            let tail = &bytes[bytes.len() - TAIL..];
            assert!(is_at_end(tail) && is_at_end(&[&tail[3..], &[0; 3]].concat()));
            assert!(!is_at_end(&[&tail[4..], &[0; 4]].concat()) && !is_at_end(b"short"));
        }
    }
}

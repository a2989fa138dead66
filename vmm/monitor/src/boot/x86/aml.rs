//! As much AML (ACPI 6.5, chapter 20) as a list of devices takes.

use crate::sys::fits;

/// A name of exactly four characters, or `\` and such a name.
pub(super) type Name<'a> = &'a str;

/// `Name (name, value)`.
pub(super) fn name(name: Name<'_>, value: &[u8]) -> Vec<u8> {
    [&[0x08], name.as_bytes(), value].concat()
}

/// `Scope (name) { body }`.
pub(super) fn scope(name: Name<'_>, body: &[u8]) -> Vec<u8> {
    [&[0x10], package_length(name.len() + body.len()).as_slice(), name.as_bytes(), body].concat()
}

/// `Device (name) { body }`.
pub(super) fn device(name: Name<'_>, body: &[u8]) -> Vec<u8> {
    [&[0x5b, 0x82], package_length(name.len() + body.len()).as_slice(), name.as_bytes(), body].concat()
}

/// `Package () { elements }`, at most 255 of them.
pub(super) fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let body = elements.concat();
    let count = fits(elements.len(), "a package has at most 255 elements");
    [&[0x12], package_length(1 + body.len()).as_slice(), &[count], &body].concat()
}

/// An integer.
pub(super) fn integer(value: u32) -> Vec<u8> {
    let bytes = value.to_le_bytes();
    match value {
        0 => vec![0],
        1 => vec![1],
        2..=0xff => vec![0x0a, bytes[0]],
        0x100..=0xffff => vec![0x0b, bytes[0], bytes[1]],
        _ => [&[0x0c], bytes.as_slice()].concat(),
    }
}

/// A string of ASCII.
pub(super) fn string(text: &str) -> Vec<u8> {
    [&[0x0d], text.as_bytes(), &[0]].concat()
}

/// `EisaId (id)`: three capital letters and four hexadecimal digits, squeezed into 32 bits, the
/// most significant byte first.
pub(super) fn eisa_id(id: &[u8; 7]) -> Vec<u8> {
    let letters = id[..3].iter().fold(0_u32, |value, letter| value << 5 | u32::from(letter - 0x40) & 0x1f);
    let digits =
        id[3..].iter().fold(0_u32, |value, &digit| value << 4 | char::from(digit).to_digit(16).unwrap_or(0));
    integer((letters << 16 | digits).swap_bytes())
}

/// `ResourceTemplate () { descriptors }`.
pub(super) fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    let body = [descriptors.concat().as_slice(), &[0x79, 0]].concat();
    let len = integer(fits(body.len(), "a device has a handful of resources"));
    [&[0x11], package_length(len.len() + body.len()).as_slice(), &len, &body].concat()
}

/// `IO (Decode16, port, port, 1, len)`.
pub(super) fn io(port: u16, len: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, len]
}

/// `Memory32Fixed (ReadWrite, address, len)`.
pub(super) fn memory32(address: u32, len: u32) -> Vec<u8> {
    [&[0x86, 9, 0, 1], address.to_le_bytes().as_slice(), &len.to_le_bytes()].concat()
}

/// `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { line }`.
pub(super) fn edge_interrupt(line: u32) -> Vec<u8> {
    [&[0x89, 6, 0, 0b0011, 1], line.to_le_bytes().as_slice()].concat()
}

/// `Method (name, 1, Serialized) { body }`.
pub(super) fn method_of_one(name: Name<'_>, body: &[u8]) -> Vec<u8> {
    let rest = [name.as_bytes(), &[0b1001], body].concat();
    [&[0x14], package_length(rest.len()).as_slice(), &rest].concat()
}

/// `Notify (\scope.device, value)`.
pub(super) fn notify(scope: Name<'_>, device: Name<'_>, value: u8) -> Vec<u8> {
    [&[0x86, b'\\', 0x2e], scope.as_bytes(), device.as_bytes(), &integer(value.into())].concat()
}

/// The length that stands before `body` bytes: it counts itself.
fn package_length(body: usize) -> Vec<u8> {
    if body + 1 < 0x40 {
        return vec![fits(body + 1, "it has six bits")];
    }
    let extra = [(1, 1 << 12), (2, 1 << 20), (3, 1 << 28)]
        .into_iter()
        .find(|&(extra, limit)| body + 1 + extra < limit)
        .map_or(3, |(extra, _)| extra);
    let total: u32 = fits(body + 1 + extra, "the tables list at most 256 devices");
    let lead = fits(extra << 6 | (body + 1 + extra) & 0xf, "two bits, and four");
    [&[lead], &(total >> 4).to_le_bytes()[..extra]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings() {
        assert_eq!(eisa_id(b"PNP0501"), [0x0c, 0x41, 0xd0, 0x05, 0x01]);
        assert_eq!(integer(0x1234), [0x0b, 0x34, 0x12]);
        assert_eq!(package(&[integer(5), integer(0)]), [0x12, 5, 2, 0x0a, 5, 0]);
    }

    #[test]
    fn package_lengths_count_themselves() {
        for (body, bytes) in [
            (0, vec![1]),
            (62, vec![63]),
            (63, vec![0x41, 4]),
            (4093, vec![0x4f, 0xff]),
            (4094, vec![0x81, 0x00, 0x01]),
        ] {
            assert_eq!(package_length(body), bytes, "{body}");
        }
    }
}

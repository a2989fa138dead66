//! Directories: entries of 32 bytes; a long name lies in entries before that of its file.

use super::super::{Node, NodeKind};
use crate::le::{plain, u16_at, u32_at};

const ENTRY: usize = 32;
const VOLUME: u8 = 8;
const DIRECTORY: u8 = 16;
const LONG: u8 = 15;

/// Entries until the end of the directory, deleted ones left out.
fn entries(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks_exact(ENTRY).take_while(|entry| entry[0] != 0).filter(|entry| entry[0] != 0xe5)
}

/// The label of the volume.
pub(super) fn label(bytes: &[u8]) -> Option<String> {
    let is_label = |entry: &&[u8]| entry[11] & 0x3f != LONG && entry[11] & (VOLUME | DIRECTORY) == VOLUME;
    let entry = entries(bytes).find(is_label)?;
    let text = plain(String::from_utf8_lossy(&entry[..11]).trim_end());
    // What some write where there is none.
    (text != "NO NAME").then_some(text)
}

/// Calls `each` with every name, until it returns `false`.
pub(super) fn walk(bytes: &[u8], each: &mut dyn FnMut(&str, Node) -> bool) {
    let mut long = Long::default();
    for entry in entries(bytes) {
        if entry[11] & 0x3f == LONG {
            long.add(entry);
            continue;
        }
        let name = long.take(entry);
        if entry[11] & VOLUME != 0 || entry[0] == b'.' {
            continue;
        }
        let kind = if entry[11] & DIRECTORY != 0 { NodeKind::Directory } else { NodeKind::File };
        let place = u64::from(u16_at(entry, 20)) << 16 | u64::from(u16_at(entry, 26));
        let size = if kind == NodeKind::File { u64::from(u32_at(entry, 28)) } else { 0 };
        let name = name.unwrap_or_else(|| short(entry));
        // No name of a file has these.
        if name.is_empty() || name.contains(['/', '\0']) {
            continue;
        }
        if !each(&name, Node { kind, size, place }) {
            return;
        }
    }
}

/// The short name, in the letters that Windows and Linux have it in.
fn short(entry: &[u8]) -> String {
    let part = |bytes: &[u8], small: bool| {
        let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if small { text.to_ascii_lowercase() } else { text }
    };
    let mut base = entry[..8].to_vec();
    if base[0] == 5 {
        base[0] = 0xe5;
    }
    let (base, ending) = (part(&base, entry[12] & 8 != 0), part(&entry[8..11], entry[12] & 16 != 0));
    if ending.is_empty() { base } else { format!("{base}.{ending}") }
}

/// A long name, which comes in pieces of thirteen characters, the last first.
#[derive(Default)]
struct Long {
    units: Vec<u16>,
    next: u8,
    sum: u8,
}

impl Long {
    fn add(&mut self, entry: &[u8]) {
        let order = entry[0] & 0x3f;
        if entry[0] & 0x40 != 0 && (1..=20).contains(&order) {
            *self = Self { units: vec![0; usize::from(order) * 13], next: order, sum: entry[13] };
        } else if self.next == 0 || order != self.next || entry[13] != self.sum {
            *self = Self::default();
            return;
        }
        self.next -= 1;
        let start = usize::from(self.next) * 13;
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (unit, at) in self.units[start..].iter_mut().zip(places) {
            *unit = u16_at(entry, at);
        }
    }

    /// The long name of the file with this short entry, if all pieces were there.
    fn take(&mut self, entry: &[u8]) -> Option<String> {
        let long = std::mem::take(self);
        let sum = entry[..11].iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if long.next != 0 || long.units.is_empty() || long.sum != sum {
            return None;
        }
        let end = long.units.iter().position(|unit| *unit == 0).unwrap_or(long.units.len());
        Some(String::from_utf16_lossy(&long.units[..end]))
    }
}

//! Extended attributes: beside their inode, or once for all inodes that have the same.

use std::collections::HashMap;

use crate::num::{fits, to_u64};
use crate::tree::{Tree, Xattrs};

/// Bytes before the attributes of an inode.
const HEADER: usize = 12;
/// Most shared attributes that one inode can point to.
const SHARED_MAX: usize = 255;

/// Prefixes that the format stores as a number (kernel: `EROFS_XATTR_INDEX_*`).
const PREFIXES: [(&[u8], u8); 6] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"lustre.", 5),
    (b"security.", 6),
];

/// Whether the format can hold an attribute of this name, and a guest should see it: the private
/// marks of overlayfs, left by the host that made the image, would change the merge that the guest
/// makes.
pub(crate) fn keeps(name: &[u8]) -> bool {
    split(name).is_some() && !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.")
}

/// The prefix's number and the rest of the name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(prefix, number)| {
        let rest = name.strip_prefix(prefix)?;
        // The two of POSIX are whole names, the others need something after them.
        (rest.is_empty() == (number == 2 || number == 3)).then_some((number, rest))
    })
}

fn encode_entry(number: u8, rest: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let name_bytes: u8 = fits(rest.len(), "the tree refuses longer names");
    let value_bytes: u16 = fits(value.len(), "the tree refuses longer values");
    out.extend([name_bytes, number]);
    out.extend(value_bytes.to_le_bytes());
    out.extend(rest);
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The attributes that several inodes share.
#[derive(Debug, Default)]
pub(super) struct SharedXattrs<'a> {
    /// Where each stands in the area, in units of four bytes.
    ids: HashMap<(&'a [u8], &'a [u8]), u32>,
    /// The area.
    pub(super) bytes: Vec<u8>,
}

impl<'a> SharedXattrs<'a> {
    /// Finds what the inodes of `tree` share, in the order in which it is first met.
    pub(super) fn collect(tree: &'a Tree) -> Self {
        let mut seen: HashMap<(&[u8], &[u8]), bool> = HashMap::new();
        let mut shared = Self::default();
        let alive = tree.nodes.iter().filter(|node| node.links > 0);
        for xattrs in alive.filter_map(|node| node.attr.xattrs.as_deref()) {
            for (name, value) in xattrs {
                let Some((number, rest)) = split(name) else { continue };
                let again = seen.entry((name, value)).and_modify(|again| *again = true).or_insert(false);
                if *again && !shared.ids.contains_key(&(&**name, &**value)) {
                    let Ok(id) = u32::try_from(shared.bytes.len() / 4) else { continue };
                    encode_entry(number, rest, value, &mut shared.bytes);
                    shared.ids.insert((name, value), id);
                }
            }
        }
        shared
    }

    /// The attributes of an inode as they follow it; empty if it has none.
    pub(super) fn encode(&self, xattrs: Option<&Xattrs>) -> Vec<u8> {
        let mut ids: Vec<u32> = Vec::new();
        let mut own = Vec::new();
        for (name, value) in xattrs.into_iter().flatten() {
            let Some((number, rest)) = split(name) else { continue };
            match self.ids.get(&(&**name, &**value)) {
                Some(&id) if ids.len() < SHARED_MAX => ids.push(id),
                _ => encode_entry(number, rest, value, &mut own),
            }
        }
        if ids.is_empty() && own.is_empty() {
            return own;
        }
        let mut out = vec![0; HEADER];
        out[4] = fits(ids.len(), "there are at most SHARED_MAX");
        out.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        out.extend(own);
        out
    }

    /// Bytes of the shared area.
    pub(super) fn len(&self) -> u64 {
        to_u64(self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(split(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(split(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(split(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(split(b"system.posix_acl_accessory"), None);
        assert_eq!(split(b"user."), None);
        assert_eq!(split(b"com.apple.provenance"), None);
        assert!(keeps(b"trusted.x") && !keeps(b"trusted.overlay.opaque") && !keeps(b"user.overlay.redirect"));
    }
}

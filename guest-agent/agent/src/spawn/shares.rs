//! Size limits of a container's file systems in memory.
//!
//! All of them use the guest's memory. A program that fills one should get an error, which it can
//! handle, instead of being killed by the OOM killer. So file systems without a size get a share,
//! such that a quarter of the memory is free when all are full.

use super::plan::MountPlan;

/// Default size of /dev/shm, as in docker.
const LARGEST_SHM: u64 = 64 << 20;

/// Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    /// The size of the writable layer.
    pub root: u64,
    /// The sizes of the mounts, in order; `None` if it is not a tmpfs or has a size option.
    pub mounts: Vec<Option<u64>>,
}

/// Divides `total` bytes of memory among the writable layer (`root` bytes, or 0 if not specified)
/// and the tmpfs mounts.
///
/// Specified sizes are kept and subtracted from the writable layer's share, which is at least an
/// eighth of the memory.
#[must_use]
pub fn divide(total: u64, root: u64, mounts: &[MountPlan]) -> Shares {
    let said: Vec<_> = mounts.iter().map(|mount| size(&mount.options.data, total)).collect();
    let unsaid = |mount: &MountPlan, said: &Option<u64>| mount.kind == "tmpfs" && said.is_none();
    let others =
        mounts.iter().zip(&said).filter(|(mount, said)| unsaid(mount, said) && usual(mount, total).is_none());
    let others = u64::try_from(others.count()).expect("mounts are counted in 64 bits");
    let share = |mount: &MountPlan| usual(mount, total).unwrap_or_else(|| total / 4 / others.max(1));
    let given = mounts.iter().zip(&said).map(|(mount, said)| unsaid(mount, said).then(|| share(mount)));
    let given: Vec<_> = given.collect();
    let taken = said
        .iter()
        .zip(mounts)
        .filter(|(_, mount)| mount.kind == "tmpfs")
        .filter_map(|(said, _)| *said)
        .chain(given.iter().filter_map(|given| *given))
        .fold(0u64, u64::saturating_add);
    let root = match root {
        0 => (total / 4 * 3).saturating_sub(taken).clamp(total / 8, total / 2),
        bytes => bytes,
    };
    Shares { root, mounts: given }
}

/// The share of a default mount.
fn usual(mount: &MountPlan, total: u64) -> Option<u64> {
    match mount.destination.as_str() {
        "/dev" => Some(total / 64),
        "/dev/shm" => Some(LARGEST_SHM.min(total / 8)),
        _ => None,
    }
}

/// The size in the options of a tmpfs, parsed as the kernel does. Options that the kernel will
/// refuse count as 0.
fn size(data: &str, total: u64) -> Option<u64> {
    const PAGE: u64 = 4096;
    data.split(',').rev().find_map(|word| {
        if let Some(blocks) = word.strip_prefix("nr_blocks=") {
            return Some(number(blocks).unwrap_or(0).saturating_mul(PAGE));
        }
        let text = word.strip_prefix("size=")?;
        Some(match text.strip_suffix('%') {
            Some(percent) => number(percent).unwrap_or(0).saturating_mul(total / 100),
            None => number(text).unwrap_or(0),
        })
    })
}

/// Parses a number with a size suffix, as the kernel does.
fn number(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)? {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spawn::mount_options::MountOptions;

    const MIB: u64 = 1 << 20;

    fn mount(destination: &str, kind: &str, data: &str) -> MountPlan {
        let options = MountOptions { data: data.to_owned(), ..MountOptions::default() };
        MountPlan {
            destination: destination.to_owned(),
            kind: kind.to_owned(),
            source: String::new(),
            options,
        }
    }

    fn usual_mounts() -> Vec<MountPlan> {
        vec![
            mount("/proc", "proc", ""),
            mount("/dev", "tmpfs", "mode=755"),
            mount("/dev/shm", "tmpfs", "mode=1777"),
        ]
    }

    #[test]
    fn shares_of_a_usual_container() {
        let shares = divide(128 * MIB, 0, &usual_mounts());
        assert_eq!(shares, Shares { root: 64 * MIB, mounts: vec![None, Some(2 * MIB), Some(16 * MIB)] });
        let large = divide(4096 * MIB, 0, &usual_mounts());
        assert_eq!(large, Shares { root: 2048 * MIB, mounts: vec![None, Some(64 * MIB), Some(64 * MIB)] });
    }

    #[test]
    fn what_somebody_said_is_kept() {
        let mut mounts = usual_mounts();
        mounts.push(mount("/a", "tmpfs", "size=64m,mode=700"));
        mounts.push(mount("/b", "tmpfs", "nr_blocks=1024"));
        mounts.push(mount("/c", "tmpfs", "size=50%"));
        mounts.push(mount("/d", "tmpfs", ""));
        mounts.push(mount("/e", "tmpfs", ""));
        let shares = divide(1024 * MIB, 0, &mounts);
        assert_eq!(shares.mounts[3..], [None, None, None, Some(128 * MIB), Some(128 * MIB)]);
        // The specified sizes exceed the memory: an eighth remains for the root.
        assert_eq!(shares.root, 128 * MIB);
        assert_eq!(divide(1024 * MIB, 5, &mounts).root, 5);
        for (data, bytes) in [
            ("size=1k", Some(1024)),
            ("size=1M,size=2M", Some(2 * MIB)),
            ("size=10%", Some(100)),
            ("size=18446744073709551615g", Some(0)),
            ("size=x", Some(0)),
            ("mode=755", None),
            ("", None),
        ] {
            assert_eq!(size(data, 1000), bytes, "{data}");
        }
    }

    proptest! {
        #[test]
        fn a_quarter_is_left_of_what_nobody_said(total in 1u64..1 << 40, extra in 0usize..20) {
            let mut mounts = usual_mounts();
            mounts.extend((0..extra).map(|n| mount(&format!("/t{n}"), "tmpfs", "")));
            let shares = divide(total, 0, &mounts);
            let sum = shares.root + shares.mounts.iter().flatten().sum::<u64>();
            prop_assert!(sum <= total / 4 * 3 + 3, "{sum} of {total}");
        }
    }
}

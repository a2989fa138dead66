//! What the process of a machine uses of the host.

/// Nothing, where the host does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// CPU time in nanoseconds, that of the guest included.
    pub cpu_ns: u64,
    /// Resident memory in bytes, with what the guest has touched of its memory.
    pub resident_bytes: u64,
}

/// Usage of a process that is a child of this one and not reaped, so that its number is its own.
pub(super) fn of(pid: u32) -> Usage {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let page = u64::try_from(rustix::param::page_size()).expect("a page is small");
    parse(&text, rustix::param::clock_ticks_per_second(), page).unwrap_or_default()
}

/// Fields 14 and 15 (ticks in user and kernel mode) and 24 (pages) of `/proc/PID/stat`, see
/// proc_pid_stat(5). The second field is the program's name, which may hold anything.
fn parse(stat: &str, ticks_a_second: u64, page: u64) -> Option<Usage> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let ticks = next()?.saturating_add(next()?);
    let pages: u64 = rest.split_whitespace().nth(21)?.parse().ok()?;
    let cpu_ns = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_a_second.max(1));
    Some(Usage { cpu_ns: u64::try_from(cpu_ns).ok()?, resident_bytes: pages.saturating_mul(page) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_behind_the_name() {
        let hostile =
            "7 (a) R 1 (b) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 7 8 20 0 1 0 4711 22 3 18446744073709551615";
        let usage = Usage { cpu_ns: 2_000_000_000, resident_bytes: 3 * 4096 };
        assert_eq!(parse(hostile, 100, 4096), Some(usage));
        for bad in ["", "7 (a", "7 (a) R 1 2 3", "7 (a) R 1 2 3 4 5 6 7 8 9 10 x y"] {
            assert_eq!(parse(bad, 100, 4096), None, "{bad}");
        }
        assert!(of(std::process::id()).resident_bytes > 0);
        assert_eq!(of(0), Usage::default());
    }
}

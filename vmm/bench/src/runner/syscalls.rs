//! System calls of one start, counted by strace in a start of its own: a traced process is several
//! times slower and is not timed.

use std::fs;
use std::time::Duration;

use nelly_vmm::sys::signals::Signals;

use super::RunnerError;
use super::child::watch;
use crate::peer::Launch;

/// Counts them, over all threads and children, from the exec to the end.
///
/// # Errors
/// There is no strace, or the start failed.
pub(super) fn count(
    launch: &Launch,
    marker: Option<&str>,
    limit: Duration,
    signals: &Signals,
) -> Result<u64, RunnerError> {
    if !launch.ends_itself {
        let source = std::io::Error::other("the monitor does not end by itself");
        return Err(RunnerError::host(
            "cannot count system calls, which strace prints when the process ends",
        )(source));
    }
    let directory = tempfile::tempdir().map_err(RunnerError::host("cannot make a temporary directory"))?;
    let table = directory.path().join("strace");
    let mut arguments: Vec<String> = ["-f", "-c", "-o"].map(str::to_owned).to_vec();
    arguments.extend([table.display().to_string(), "--".to_owned(), launch.program.display().to_string()]);
    arguments.extend(launch.arguments.iter().cloned());
    let traced = Launch { program: "strace".into(), arguments, ..launch.clone() };
    // Under strace everything takes its time.
    watch(&traced, marker, limit.saturating_mul(10), signals)?;
    let text = fs::read_to_string(&table).map_err(RunnerError::host("cannot read strace's count"))?;
    Ok(sum(&text))
}

/// The sum of the `calls` column.
fn sum(table: &str) -> u64 {
    let rows = table.lines().filter(|line| !line.ends_with("total") && !line.starts_with('-'));
    rows.filter_map(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_column_is_added_up() {
        let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000300          10        30         2 ioctl
 40.00    0.000200          20        12           mmap
------ ----------- ----------- --------- --------- ----------------
100.00    0.000500          11        42         2 total
";
        assert_eq!(sum(table), 42);
        assert_eq!(sum(""), 0);
    }
}

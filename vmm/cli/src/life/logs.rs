//! `nelly logs`: what a container wrote.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Error, Result, anyhow, bail};
use nelly_sandbox::spec::quantity::Time;
use nelly_sandbox::state::logs::{LogReader, Record, Stream, follow};
use nelly_sandbox::state::{Id, SandboxDir, Status, Timestamp};

use super::args::{LogsArgs, Tail};
use crate::context::Context;
use crate::fail::OfFlag as _;
use crate::out;

/// Prints the log of a sandbox, and with `--follow` what comes until its end.
pub(crate) fn logs(args: &LogsArgs, context: &Context) -> Result<ExitCode> {
    let since = args.since.as_deref().map(since).transpose().of_flag("--since")?;
    let (word, container) = super::target(&args.sandbox);
    let sandbox = super::sandboxes(context)?.find(word)?;
    if sandbox.state()?.foreground {
        bail!(
            "sandbox {word} has no log: its output is that of the `nelly run --rm` that holds it; leave --rm out to keep a log"
        );
    }
    let container = (!container.is_empty()).then(|| id_of(&sandbox, container)).transpose()?;
    let open = || match container {
        Some(id) => sandbox.container_logs(id),
        None => sandbox.logs(),
    };
    let directory = open()?;
    let mut reader = match args.tail {
        Tail::All => LogReader::new(directory),
        Tail::Lines(lines) => LogReader::tail(directory, lines)?,
    };
    let mut printer = Printer {
        since: since.map(|time| time.to_string()),
        timestamps: args.timestamps,
        sinks: [BufWriter::new(Box::new(io::stdout())), BufWriter::new(Box::new(io::stderr()))],
        middle: [false; 2],
    };
    let printed = if args.follow {
        // Both need the printer, one after the other.
        let printer = std::cell::RefCell::new(&mut printer);
        follow(
            &sandbox,
            &open()?,
            &mut reader,
            || match container {
                Some(id) => Ok(sandbox
                    .state()?
                    .containers
                    .iter()
                    .all(|one| one.id != id || one.status == Status::Exited)),
                None => Ok(false),
            },
            |record| printer.borrow_mut().print(record),
            || printer.borrow_mut().flush(),
        )
    } else {
        reader.read(|record| printer.print(record)).and_then(|()| printer.flush())
    };
    match printed {
        // The reader has gone.
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        printed => printed?,
    }
    let report = reader.report();
    if report.damaged_lines > 0 {
        out::message(format_args!("{} lines of the log are damaged and were left out", report.damaged_lines));
    }
    if report.missed_segments > 0 {
        out::message("a part of the log was replaced by newer output before it was read");
    }
    Ok(ExitCode::SUCCESS)
}

/// The further container of a sandbox that a word means.
pub(super) fn id_of(sandbox: &SandboxDir, word: &str) -> Result<Id> {
    let found = sandbox.state()?.container(word).map(|one| one.id);
    found
        .ok_or_else(|| anyhow!("sandbox {} has no container {word}; see nelly inspect", sandbox.id().short()))
}

/// A point in time, or how long ago it was.
pub(super) fn since(text: &str) -> Result<Timestamp> {
    if let Some(time) = point(text) {
        return Ok(time);
    }
    let past = Time::DELAY
        .parse(text)
        .with_context(|| format!("{text:?} is neither a time, {POINTS}, nor a duration before now"))?;
    Ok(Timestamp::now().before(past))
}

/// Times as [`point`] takes them, for messages.
pub(super) const POINTS: &str = "such as 2026-01-31T12:00:00Z or 1769860800 (seconds since 1970)";

/// Fewer digits are no Unix time: they would be a day before 1973, and are a duration whose unit
/// was forgotten.
const UNIX_DIGITS_LEAST: usize = 9;

/// A point in time: RFC 3339, or as docker takes it, too, seconds since 1970 with up to nine digits
/// behind a point.
pub(super) fn point(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let (seconds, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(part) || seconds.len() < UNIX_DIGITS_LEAST || part.len() > 9 {
        return None;
    }
    let whole = seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?;
    let part: u64 = format!("{part:0<9}").parse().ok()?;
    whole.checked_add(part).map(Timestamp::from_unix_ns)
}

fn is_broken_pipe(error: &Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Prints records to where they were written.
struct Printer {
    since: Option<String>,
    timestamps: bool,
    sinks: [BufWriter<Box<dyn Write>>; 2],
    /// Whether the last record of a stream did not end its line.
    middle: [bool; 2],
}

impl Printer {
    fn print(&mut self, record: Record<'_>) -> Result<()> {
        // Texts of times sort as the times.
        if self.since.as_deref().is_some_and(|since| record.time < since) {
            return Ok(());
        }
        let (this, other) = if record.stream == Stream::Stdout { (0, 1) } else { (1, 0) };
        // On a terminal both streams appear in their order.
        self.sinks[other].flush()?;
        let sink = &mut self.sinks[this];
        if self.timestamps && !self.middle[this] {
            write!(sink, "{} ", record.time)?;
        }
        sink.write_all(record.content)?;
        if record.ends_line {
            sink.write_all(b"\n")?;
        }
        self.middle[this] = !record.ends_line;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.sinks.iter_mut().try_for_each(Write::flush)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_takes_a_time_or_a_duration() {
        assert_eq!(since("2026-01-31T12:00:00Z").unwrap().to_string(), "2026-01-31T12:00:00.000000000Z");
        // As docker takes them, seconds since 1970.
        for (text, time) in [
            ("1700000000", "2023-11-14T22:13:20.000000000Z"),
            ("1700000000.5", "2023-11-14T22:13:20.500000000Z"),
            ("1700000000.000000007", "2023-11-14T22:13:20.000000007Z"),
            ("100000000", "1973-03-03T09:46:40.000000000Z"),
        ] {
            assert_eq!(since(text).unwrap().to_string(), time, "{text}");
        }
        let ten_minutes_ago = since("10m").unwrap();
        let ago = Timestamp::now().since(ten_minutes_ago).as_secs();
        assert!((600..=700).contains(&ago), "{ago}");
        for bad in [
            "",
            "yesterday",
            "10",
            "2026-99-01",
            "1700000000.",
            ".5",
            "1700000000.0000000001",
            "-1700000000",
            "99999999999",
            "99999999999999999999999",
        ] {
            assert!(since(bad).unwrap_err().to_string().contains("neither a time"), "{bad}");
        }
    }
}

//! Progress of the image store and of copies, as a bar on a terminal. If stderr is not a
//! terminal, nothing is printed.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use nelly_image::{ImageStage, Progress};

/// Draws at most ten times a second, and nothing in the first half second.
pub(crate) struct Bar {
    started: Instant,
    drawn: Option<Instant>,
    shown: bool,
}

/// No progress is shown before this time.
const PATIENCE: Duration = Duration::from_millis(500);

impl Bar {
    /// A bar, which is hidden if `quiet` is set or stderr is not a terminal.
    pub(crate) fn new(quiet: bool) -> Self {
        let terminal = stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { started: Instant::now(), drawn: None, shown: terminal && !quiet }
    }

    /// Removes the bar from the terminal.
    pub(crate) fn finish(&mut self) {
        if self.drawn.take().is_some() {
            let _ = stderr().write_all(b"\r\x1b[K");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Progress for Bar {
    fn update(&mut self, stage: ImageStage, done: u64, total: Option<u64>) {
        self.show(&stage.to_string(), done, total);
    }
}

impl Bar {
    /// Shows how many bytes of `total` are done.
    pub(crate) fn show(&mut self, text: &str, done: u64, total: Option<u64>) {
        let drawn = |drawn: Instant| drawn.elapsed() < Duration::from_millis(100);
        if !self.shown || self.started.elapsed() < PATIENCE || self.drawn.is_some_and(drawn) {
            return;
        }
        self.drawn = Some(Instant::now());
        let _ = write!(stderr(), "\r\x1b[K{}", line(text, done, total));
    }
}

fn line(text: &str, done: u64, total: Option<u64>) -> String {
    let mebibytes = |bytes: u64| bytes >> 20;
    match total.filter(|total| *total > 0) {
        Some(total) => {
            let done_of_20 = done.min(total).saturating_mul(20) / total;
            let bar: String = (0..20).map(|n| if n < done_of_20 { '#' } else { '.' }).collect();
            format!("{text} [{bar}] {} of {} MiB", mebibytes(done), mebibytes(total))
        }
        None if done > 0 => format!("{text}, {} MiB", mebibytes(done)),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_never_overflows() {
        assert_eq!(line("x", 0, None), "x");
        assert!(line("x", 5 << 20, Some(10 << 20)).contains("[##########..........] 5 of 10 MiB"));
        assert!(line("x", 50, Some(10)).contains("[####################]"));
        assert!(line("x", u64::MAX, Some(u64::MAX)).contains('#'));
    }
}

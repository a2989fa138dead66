//! Progress of transfers: a bar for each blob on a terminal, else a line when one is done.

use std::io::{IsTerminal, Write, stderr};

use nelly_image::ImageName;
use nelly_registry::{Step, Transfer, Watch};
use rustix::termios::tcgetwinsize;

use crate::out;

/// Most bars that are drawn; what is done beyond is summed up.
const MOST: usize = 12;

/// Shows transfers on standard error.
pub(super) struct Bars {
    verb: &'static str,
    name: String,
    quiet: bool,
    terminal: bool,
    /// Lines that were drawn and are drawn over.
    drawn: usize,
    /// Which transfers were told as done.
    told: Vec<bool>,
}

impl Bars {
    /// Bars for a transfer of an image; hidden if `quiet` is set.
    pub(super) fn new(verb: &'static str, name: &ImageName, quiet: bool) -> Self {
        let terminal = stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        if !quiet && !terminal {
            out::note(format_args!("{verb} {name}\n"));
        }
        Self { verb, name: name.to_string(), quiet, terminal, drawn: 0, told: Vec::new() }
    }

    /// Removes what was drawn.
    pub(super) fn finish(&mut self) {
        if self.drawn > 0 {
            let _ = write!(stderr(), "\r\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }

    fn draw(&mut self, transfers: &[Transfer]) {
        let width = tcgetwinsize(stderr()).map_or(80, |size| usize::from(size.ws_col).max(20)) - 1;
        let mut text = if self.drawn > 0 { format!("\r\x1b[{}A\x1b[J", self.drawn) } else { String::new() };
        let lines = lines(self.verb, &self.name, transfers);
        for line in &lines {
            text.extend(line.chars().take(width));
            text.push('\n');
        }
        self.drawn = lines.len();
        let _ = stderr().write_all(text.as_bytes());
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Watch for Bars {
    fn warn(&mut self, warning: &str) {
        self.finish();
        out::message(format_args!("{warning}"));
    }

    fn look(&mut self, transfers: &[Transfer]) {
        if self.quiet {
            return;
        }
        if self.terminal {
            return self.draw(transfers);
        }
        self.told.resize(transfers.len(), false);
        for (transfer, told) in transfers.iter().zip(&mut self.told) {
            if !*told && matches!(transfer.step(), Step::Done | Step::There) {
                *told = true;
                out::note(format_args!("{}\n", line(transfer)));
            }
        }
    }
}

/// All lines: the image, those on the way, and what is done or waits.
fn lines(verb: &str, name: &str, transfers: &[Transfer]) -> Vec<String> {
    let done = |transfer: &&Transfer| matches!(transfer.step(), Step::Done | Step::There);
    let count = transfers.iter().filter(done).count();
    let mut lines = vec![format!("{verb} {name}: {count} of {} done", transfers.len())];
    if transfers.len() <= MOST {
        lines.extend(transfers.iter().map(line));
    } else {
        let moves = |transfer: &&Transfer| matches!(transfer.step(), Step::Running | Step::Elsewhere);
        lines.extend(transfers.iter().filter(moves).take(MOST).map(line));
    }
    lines
}

/// One blob.
fn line(transfer: &Transfer) -> String {
    let hex = transfer.blob.digest.hex();
    let (id, size, done) = (hex.get(..12).unwrap_or(&hex), transfer.blob.size, transfer.done());
    let rest = match transfer.step() {
        Step::Queued => "waiting".to_owned(),
        Step::Elsewhere => "waiting for another process that transfers it".to_owned(),
        Step::There => "already there".to_owned(),
        Step::Done => format!("done, {}", bytes(size)),
        _ => {
            let parts = done.min(size).saturating_mul(20).checked_div(size).unwrap_or(20);
            let bar: String = (0..20).map(|n| if n < parts { '#' } else { '.' }).collect();
            format!("[{bar}] {} of {}", bytes(done), bytes(size))
        }
    };
    format!("  {id} {rest}")
}

/// A number of bytes for people.
fn bytes(number: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", number / unit, number % unit * 10 / unit);
    match number {
        0..1024 => format!("{number} B"),
        1024..1_048_576 => format!("{} KiB", tenths(1 << 10)),
        1_048_576..1_073_741_824 => format!("{} MiB", tenths(1 << 20)),
        _ => format!("{} GiB", tenths(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        for (number, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (3 << 20, "3.0 MiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(bytes(number), want);
        }
    }
}

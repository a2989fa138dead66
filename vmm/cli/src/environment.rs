//! `-e` and `--env-file`.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nelly_vmm::sys::files::{self, Accept};

use crate::fail::Usage;

/// Words for the container: files first, flags after them. A name without a value is passed on from
/// `get`, and left out where that has none, as docker does.
pub(crate) fn collect(
    files: &[PathBuf],
    flags: &[String],
    get: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut push = |word: &str| {
        if word.contains('=') {
            words.push(word.to_owned());
        } else if let Some(value) = get(word) {
            words.push(format!("{word}={value}"));
        }
    };
    for file in files {
        let text = read(file).with_context(|| format!("cannot read --env-file {}", file.display()))?;
        // Editors of some systems begin a file with a byte order mark, which is no part of the
        // first name.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let name = line.split('=').next().unwrap_or_default();
            if name.is_empty() || name.contains(char::is_whitespace) {
                bail!("--env-file {}, line {}: {line:?} is not NAME=VALUE", file.display(), number + 1);
            }
            push(line);
        }
    }
    for word in flags {
        if word.is_empty() || word.starts_with('=') {
            return Err(Usage::error(format!("-e {word:?} is not NAME=VALUE")));
        }
        push(word);
    }
    Ok(words)
}

fn read(path: &Path) -> std::io::Result<String> {
    let file = files::open(path, OpenOptions::new().read(true), Accept::Text)?;
    std::io::read_to_string(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_then_flags_and_names_are_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        std::fs::write(&file, "# comment\n\nA=1\n  B=two words\nHOST\nGONE\n").unwrap();
        let get = |name: &str| (name == "HOST").then(|| "h".to_owned());
        let words = collect(std::slice::from_ref(&file), &["A=2".into(), "HOST".into()], get).unwrap();
        assert_eq!(words, ["A=1", "B=two words", "HOST=h", "A=2", "HOST=h"]);
        // A byte order mark is dropped at the beginning, and nowhere else.
        std::fs::write(&file, "\u{feff}A=1\r\nB=\u{feff}\n").unwrap();
        assert_eq!(collect(std::slice::from_ref(&file), &[], get).unwrap(), ["A=1", "B=\u{feff}"]);
        std::fs::write(&file, "A=1\nnot ok=1\n").unwrap();
        let error = collect(&[file], &[], get).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(collect(&[], &["=x".into()], get).is_err());
        let gone = collect(&["/nonexistent/env".into()], &[], get).unwrap_err();
        assert!(format!("{gone:#}").contains("/nonexistent/env"));
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        let waits = collect(&[fifo], &[], get).unwrap_err();
        assert!(format!("{waits:#}").contains("FIFO"));
    }
}

//! What `run` and `keep` need beside the targets:
//!
//! - `tool seeds` writes every target's seeds, and the inputs that are kept, to `corpus/TARGET`,
//!   where the fuzzer looks for them;
//! - `tool pack TARGET DIRECTORY` keeps the inputs in a directory, the shortest first, in
//!   `kept/TARGET`;
//! - `tool table` writes the table of `figures.tsv` and `findings.tsv` into `docs/fuzzing.md`.

use std::io;
use std::path::{Path, PathBuf};

use nelly_fuzz::{TARGETS, kept, report};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["seeds"] => seeds(),
        ["pack", target, directory] => pack(target, Path::new(directory)),
        ["table"] => table(),
        _ => Err(io::Error::other("write tool seeds, tool pack TARGET DIRECTORY or tool table")),
    }
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn seeds() -> io::Result<()> {
    for target in TARGETS {
        let directory = here().join("corpus").join(target.name);
        std::fs::create_dir_all(&directory)?;
        let kept = match std::fs::read(here().join("kept").join(target.name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => kept::unpacked(&bytes?).map_err(io::Error::other)?,
        };
        let named = |kind: &'static str, inputs: Vec<Vec<u8>>| {
            inputs.into_iter().enumerate().map(move |(index, input)| (format!("{kind}-{index}"), input))
        };
        for (name, input) in named("seed", (target.seeds)()).chain(named("kept", kept)) {
            std::fs::write(directory.join(name), input)?;
        }
    }
    Ok(())
}

fn pack(target: &str, directory: &Path) -> io::Result<()> {
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        inputs.push(std::fs::read(entry?.path())?);
    }
    std::fs::create_dir_all(here().join("kept"))?;
    std::fs::write(here().join("kept").join(target), kept::packed(inputs))
}

fn table() -> io::Result<()> {
    let read = |name: &str| std::fs::read_to_string(here().join(name));
    let document: PathBuf = here().join("../docs/fuzzing.md");
    let text = std::fs::read_to_string(&document)?;
    let table = report::table(&read("figures.tsv")?, &read("findings.tsv")?).map_err(io::Error::other)?;
    let text = report::with_table(&text, &table).ok_or_else(|| io::Error::other("no place for the table"))?;
    // Whole or not at all: another run may read it.
    let new = document.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, document)
}

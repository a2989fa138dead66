//! Has a packed file unpacked by the confined program.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nelly_image::{Unpacker, UnpackerError};

use crate::error::FetchError;
use crate::packing::Packing;
use crate::watch::{Stage, Watch};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(20);
/// Its exit code when the archive does not have the file.
const NO_MEMBER: i32 = 3;
/// Most bytes of its words that are kept.
const WORDS: u64 = 2000;

/// What is unpacked.
pub(crate) struct Unpacking<'a> {
    /// For messages.
    pub(crate) what: &'a str,
    pub(crate) packing: Packing,
    /// The file of an archive that is wanted.
    pub(crate) member: Option<&'a str>,
    /// Most bytes that may come out.
    pub(crate) most: u64,
}

impl Unpacking<'_> {
    /// Unpacks `from`, which is read from where it stands, into the empty file `to`.
    pub(crate) fn run(
        &self,
        unpacker: &Unpacker,
        from: &File,
        to: &File,
        watch: &mut dyn Watch,
        over: &dyn Fn() -> bool,
    ) -> Result<(), FetchError> {
        let program = unpacker.find()?;
        let talk = |source: io::Error| UnpackerError::Talk { program: program.to_owned(), source };
        let refused = |why: String| FetchError::Unpack { what: self.what.to_owned(), why };
        let word = self.packing.word().unwrap_or_default();
        let stream = |file: &File| file.as_fd().try_clone_to_owned().map(Stdio::from).map_err(talk);
        let mut command = Command::new(program);
        command.args(["stream", word, &self.most.to_string()]).args(self.member);
        command.env_clear().stdin(stream(from)?).stdout(stream(to)?).stderr(Stdio::piped());
        // A terminal's Ctrl-C is for the caller, with whom it ends.
        command.process_group(0);
        let child =
            command.spawn().map_err(|source| UnpackerError::Start { program: program.to_owned(), source })?;
        let mut child = Running(child);
        let errors = child.0.stderr.take().expect("it is piped");
        let words = thread::spawn(move || {
            let mut words = Vec::new();
            let mut first = errors.take(WORDS);
            let read = first.read_to_end(&mut words);
            // The rest is read, so that it never waits, and left out.
            let _ = io::copy(&mut first.into_inner(), &mut io::sink());
            read.map(|_| words).unwrap_or_default()
        });
        let total = from.metadata().map_err(talk)?.len();
        let ended = loop {
            if let Some(ended) = child.0.try_wait().map_err(talk)? {
                break ended;
            }
            if over() {
                return Err(nelly_registry::RegistryError::Cancelled.into());
            }
            // It reads by the same open file, so this says how far it is.
            let mut at = from;
            watch.at(Stage::Unpack, at.stream_position().map_err(talk)?, Some(total));
            thread::sleep(LOOK);
        };
        let words = words.join().unwrap_or_default();
        if ended.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&words);
        let last = words.trim().lines().last().unwrap_or_default();
        let last = last.strip_prefix("nelly-unpack: ").unwrap_or(last);
        let clean: String = last.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect();
        if ended.code() == Some(NO_MEMBER) {
            return Err(FetchError::NoMember { what: self.what.to_owned(), why: clean });
        }
        Err(refused(if clean.is_empty() { format!("its unpacker ended with {ended}") } else { clean }))
    }
}

/// Killed when it is dropped before its end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended was waited for; neither fails for a child of one's own.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

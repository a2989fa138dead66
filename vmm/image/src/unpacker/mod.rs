//! Unpacking in a process of its own, which is confined: what reads archives, compressed streams
//! and layers can then write to the cache and nowhere else, and reaches no network, whatever is in
//! them.
//!
//! A program names an [`Unpacker`] in its [`crate::StoreOptions`]. What the cache has is taken from
//! there, and no process is started; the tar file of an archive is read by the unpacker alone. The
//! unpacker's own program reads an [`Order`], gives up what the order does not need, and carries it
//! out ([`crate::Store::carry_out`]).

mod wire;

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wire::{Bytes, OrderText, Wanted};

use crate::digest::Digest;
use crate::error::{ImageError, Told, UnpackerError, shown};
use crate::limits::Limits;
use crate::num::at_most;
use crate::progress::{ImageStage, Progress};
use crate::reference::Reference;
use crate::source::open_regular;

pub(crate) use wire::{Report, VERSION};

/// What is kept of what is no report.
const WORDS_MAX: usize = 2000;
/// Bytes that are read at once. They are not on the stack: whoever finds its image in the cache
/// would pay for that.
const READ: usize = 64 << 10;
/// How often the caller is asked whether it still waits.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);
/// How long an unpacker that is not wanted any more may take to end by itself.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// Most files outside of a layout that its links lead to.
const LINKED_MAX: usize = 256;

/// The program that unpacks images for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacker {
    places: Vec<PathBuf>,
    /// How long one that is not wanted any more, or says nothing more, may take to end by itself.
    grace: Duration,
}

/// What an unpacker has put into the cache.
pub(crate) struct Unpacked {
    pub(crate) digest: String,
    pub(crate) config: String,
    pub(crate) cached: bool,
}

impl Unpacker {
    /// The first of these files that there is.
    #[must_use]
    pub fn at(places: Vec<PathBuf>) -> Self {
        Self { places, grace: GRACE }
    }

    /// The program.
    ///
    /// # Errors
    /// [`UnpackerError::Missing`].
    pub fn find(&self) -> Result<&Path, UnpackerError> {
        let found = self.places.iter().find(|path| path.is_file());
        found.map(PathBuf::as_path).ok_or_else(|| UnpackerError::Missing { tried: self.places.clone() })
    }

    /// Has an order carried out.
    pub(crate) fn unpack(&self, order: &Order, progress: &mut dyn Progress) -> Result<Unpacked, ImageError> {
        let failed = |source| ImageError::Unpacker { reference: Box::new(order.reference.clone()), source };
        let program = self.find().map_err(failed)?;
        let mut running = Running::start(program, order).map_err(failed)?;
        let talk = |source| failed(UnpackerError::Talk { program: program.to_owned(), source });
        let mut left = None;
        let mut result = None;
        while let Some(line) = running.line(left).map_err(talk)? {
            match line {
                Line::Report(Report::Stage { stage, done, total }) => progress.update(stage, done, total),
                Line::Report(Report::Done { digest, config, cached }) => {
                    result = Some(Ok(Unpacked { digest, config, cached }));
                }
                Line::Report(Report::Failed { code, words }) => {
                    result = Some(Err(Told::new(&code, &words)));
                }
                // What is said of archives is said to others.
                Line::Report(Report::File { .. } | Report::Files(_)) | Line::None => {}
            }
            if left.is_none() && progress.cancelled() {
                // It ends by itself, and takes its unfinished files along.
                running.orders = None;
                left = Some(Instant::now() + self.grace);
            }
        }
        let ended = running.end(left.unwrap_or_else(|| Instant::now() + self.grace)).map_err(talk)?;
        match result {
            _ if left.is_some() => Err(ImageError::Cancelled),
            Some(Ok(done)) if ended.is_none_or(|status| status.success()) => Ok(done),
            Some(Err(told)) => Err(told.error(&order.cache)),
            _ => Err(failed(running.ended(program, ended))),
        }
    }
}

/// An unpacker at work; killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    orders: Option<ChildStdin>,
    pub(crate) reports: io::PipeReader,
    /// How long a line is waited for.
    pub(crate) patience: Duration,
    /// What was read of its reports.
    read: Vec<u8>,
    /// How much of that was taken, and how much was looked through for the end of a line.
    taken: usize,
    looked: usize,
    /// The end of what was no report.
    words: Vec<u8>,
    /// Longest line that is believed to be a report: a configuration of the largest size, of which
    /// each byte is written as six.
    line_max: usize,
}

/// What was heard.
pub(crate) enum Line {
    Report(Report),
    /// Nothing yet, or none that is a report.
    None,
}

impl Running {
    fn start(program: &Path, order: &Order) -> Result<Self, UnpackerError> {
        let talk = |source| UnpackerError::Talk { program: program.to_owned(), source };
        let (reports, output) = io::pipe().map_err(talk)?;
        let errors = output.try_clone().map_err(talk)?;
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(output).stderr(errors);
        let line_max = at_most(order.limits.json_bytes, 1_usize << 30) * 6 + (64 << 10);
        let mut running = Self::of(command, program, reports, line_max)?;
        let mut line = serde_json::to_vec(&order.text()).map_err(|error| talk(error.into()))?;
        line.push(b'\n');
        match running.orders.as_mut().map(|orders| orders.write_all(&line)) {
            // What it says at its end is worth more.
            None | Some(Ok(()) | Err(_)) => Ok(running),
        }
    }

    /// Starts it, with no environment. It has the other end of `reports`, of which no line is
    /// longer than `line_max` bytes.
    pub(crate) fn of(
        mut command: Command,
        program: &Path,
        reports: io::PipeReader,
        line_max: usize,
    ) -> Result<Self, UnpackerError> {
        // A terminal's Ctrl-C is for the caller, with whom it ends.
        command.env_clear().process_group(0);
        let started = command.spawn();
        // The other ends of the pipes.
        drop(command);
        let failed = |source| UnpackerError::Start { program: program.to_owned(), source };
        let mut child = started.map_err(failed)?;
        let orders = child.stdin.take();
        Ok(Self {
            child,
            orders,
            reports,
            patience: PATIENCE,
            read: Vec::new(),
            taken: 0,
            looked: 0,
            words: Vec::new(),
            line_max,
        })
    }

    /// The next line; `None` at the end. Waits for no longer than `patience`.
    pub(crate) fn line(&mut self, left: Option<Instant>) -> io::Result<Option<Line>> {
        if let Some(end) = self.read[self.looked..].iter().position(|byte| *byte == b'\n') {
            let (from, to) = (self.taken, self.looked + end + 1);
            (self.taken, self.looked) = (to, to);
            return Ok(Some(self.understand(from, to)));
        }
        self.read.drain(..self.taken);
        (self.taken, self.looked) = (0, self.read.len());
        if left.is_some_and(|end| Instant::now() >= end) {
            return Ok(None);
        }
        let patience = Timespec::try_from(self.patience).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.reports, PollFlags::IN)], Some(&patience)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Some(Line::None)),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let had = self.read.len();
        self.read.resize(had + READ, 0);
        let got = self.reports.read(&mut self.read[had..]);
        self.read.truncate(had + got.as_ref().copied().unwrap_or(0));
        let got = match got {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Some(Line::None)),
            got => got?,
        };
        if got == 0 && self.read.is_empty() {
            return Ok(None);
        }
        if got == 0 || self.read.len() > self.line_max {
            let to = self.read.len();
            (self.taken, self.looked) = (to, to);
            return Ok(Some(self.understand(0, to)));
        }
        Ok(Some(Line::None))
    }

    /// What was read there, as a line.
    fn understand(&mut self, from: usize, to: usize) -> Line {
        let line = &self.read[from..to];
        if let Ok(report) = serde_json::from_slice(line) {
            return Line::Report(report);
        }
        self.words.extend_from_slice(&line[line.len().saturating_sub(WORDS_MAX)..]);
        let much = self.words.len().saturating_sub(WORDS_MAX);
        self.words.drain(..much);
        Line::None
    }
}

impl Running {
    /// Waits for its end, which comes with that of its reports; what does not end is killed.
    /// `None`: somebody else of this process has waited for it, or nobody can.
    pub(crate) fn end(&mut self, end: Instant) -> io::Result<Option<ExitStatus>> {
        let unknown = |error: io::Error| match error.raw_os_error() {
            // Children end unseen where SIGCHLD is ignored.
            Some(number) if number == rustix::io::Errno::CHILD.raw_os_error() => Ok(None),
            _ => Err(error),
        };
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => break,
                Ok(Some(status)) => return Ok(Some(status)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return unknown(error),
            }
        }
        self.child.kill()?;
        self.child.wait().map(Some).or_else(unknown)
    }
}

impl Running {
    /// The error of one that ended before it was done.
    pub(crate) fn ended(&self, program: &Path, status: Option<ExitStatus>) -> UnpackerError {
        let words = shown(&String::from_utf8_lossy(&self.words));
        let how = status.map_or_else(|| "no status".to_owned(), |status| status.to_string());
        UnpackerError::Ended { program: program.to_owned(), how, words }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or is not wanted; neither fails for a child of one's own.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What an unpacker is to unpack, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub(crate) reference: Reference,
    pub(crate) cache: PathBuf,
    pub(crate) local: Option<PathBuf>,
    pub(crate) builtin: Option<PathBuf>,
    pub(crate) limits: Limits,
}

impl Order {
    fn text(&self) -> OrderText {
        OrderText {
            version: wire::VERSION,
            wanted: Wanted::of(&self.reference),
            cache: Bytes::of(&self.cache),
            local: self.local.as_deref().map(Bytes::of),
            builtin: self.builtin.as_deref().map(Bytes::of),
            limits: self.limits,
        }
    }

    /// Reads an order, for the unpacker's program.
    ///
    /// # Errors
    /// There is none, or one of another version.
    pub fn read(input: impl BufRead) -> io::Result<Self> {
        let mut line = Vec::new();
        input.take(1 << 20).read_until(b'\n', &mut line)?;
        let text: OrderText = serde_json::from_slice(&line)?;
        let unusable = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        if text.version != wire::VERSION {
            return Err(unusable("the order is of another version"));
        }
        let no_image = || unusable("the order names no image");
        Ok(Self {
            reference: text.wanted.reference().ok_or_else(no_image)?,
            cache: text.cache.path(),
            local: text.local.map(|path| path.path()),
            builtin: text.builtin.map(|path| path.path()),
            limits: text.limits,
        })
    }

    /// The cache's directory: the only one that is written to.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The file or directory that it reads, which need not exist.
    #[must_use]
    pub fn source(&self) -> Option<&Path> {
        match &self.reference {
            Reference::OciLayout { dir: path, .. }
            | Reference::OciArchive { file: path, .. }
            | Reference::DockerArchive { file: path, .. } => Some(path),
            Reference::BuiltinBusybox => self.builtin.as_deref(),
            Reference::Named(_) | Reference::Id(_) => self.local.as_deref(),
            // Not read here.
            Reference::Rootfs { .. } => None,
        }
    }

    /// The files outside of a layout that it may lead to by links: those that a store reads before
    /// it gives an order, and blobs, each of which has the digest that it is called by. So a layout
    /// does not lead to files whose contents its maker does not know.
    ///
    /// # Errors
    /// There are more than 256 of them.
    pub fn linked(&self) -> io::Result<Vec<File>> {
        let layout = match &self.reference {
            Reference::OciLayout { dir, .. } => dir,
            Reference::BuiltinBusybox => match &self.builtin {
                Some(dir) => dir,
                None => return Ok(Vec::new()),
            },
            _ => return Ok(Vec::new()),
        };
        let Ok(inside) = layout.canonicalize() else { return Ok(Vec::new()) };
        // What lies outside; a device or a pipe is not opened.
        let outside = |path: &Path| {
            let found = path.canonicalize().ok().filter(|found| !found.starts_with(&inside))?;
            let (file, _) = open_regular(&found).ok()?;
            Some(file)
        };
        let documents = ["oci-layout", "index.json"].into_iter();
        let mut linked: Vec<File> = documents.filter_map(|name| outside(&layout.join(name))).collect();
        for algorithm in ["sha256", "sha512"] {
            let blobs = layout.join("blobs").join(algorithm);
            for entry in std::fs::read_dir(&blobs).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let digest: Option<Digest> =
                    name.to_str().and_then(|hex| format!("{algorithm}:{hex}").parse().ok());
                let Some((digest, file)) = digest.zip(outside(&blobs.join(&name))) else { continue };
                if digest.is_of(&file)? {
                    linked.push(file);
                }
                if linked.len() > LINKED_MAX {
                    return Err(io::Error::other(format!(
                        "more than {LINKED_MAX} files of {} are links that lead out of it",
                        layout.display()
                    )));
                }
            }
        }
        Ok(linked)
    }
}

/// Tells how an order goes, on the unpacker's standard output, and whether it is still wanted.
#[derive(Debug)]
pub(crate) struct Telling<W, C> {
    out: W,
    /// The caller's end: nobody waits when it is closed.
    caller: C,
    asked: Instant,
    left: bool,
}

impl<W: Write, C: AsFd> Telling<W, C> {
    pub(crate) fn new(out: W, caller: C) -> Self {
        Self { out, caller, asked: Instant::now(), left: false }
    }

    fn tell(&mut self, report: &Report) -> io::Result<()> {
        report.tell(&mut self.out)?;
        self.out.flush()
    }

    /// The last report.
    pub(crate) fn end(&mut self, result: &Result<Unpacked, ImageError>) -> io::Result<()> {
        self.tell(&match result {
            Ok(Unpacked { digest, config, cached }) => {
                Report::Done { digest: digest.clone(), config: config.clone(), cached: *cached }
            }
            Err(error) => Report::Failed { code: error.code().to_owned(), words: words(error).join("\n") },
        })
    }
}

/// The words of an error and of its causes, a line each.
pub(crate) fn words(error: &dyn std::error::Error) -> Vec<String> {
    let line = |error: &dyn std::error::Error| error.to_string().replace('\n', " ");
    let mut words = vec![line(error)];
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push(line(error));
        cause = error.source();
    }
    words
}

impl<W: Write, C: AsFd> Progress for Telling<W, C> {
    fn update(&mut self, stage: ImageStage, done: u64, total: Option<u64>) {
        // Nobody hears it any more: nobody waits.
        self.left |= self.tell(&Report::Stage { stage, done, total }).is_err();
    }

    fn cancelled(&mut self) -> bool {
        if !self.left && self.asked.elapsed() >= PATIENCE / 2 {
            self.asked = Instant::now();
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            // Nothing comes behind an order: what can be read is the end.
            let asked = poll(&mut [PollFd::new(&self.caller, PollFlags::IN)], Some(&now));
            self.left = asked.is_ok_and(|ready| ready > 0);
        }
        self.left
    }
}

#[cfg(test)]
mod tests;

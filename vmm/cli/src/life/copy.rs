//! `nelly cp`: files into a container and out of it.

use std::io::{self, IsTerminal, Read, Write, stdin, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};
use nelly_sandbox::agent::{CopySource, CopyTarget};
use nelly_sandbox::connect::Connection;
use nelly_sandbox::connect::copy::{CopyIn, CopyOut, FromHost, Interrupt, compressed, to_host};
use tokio::signal::unix::{SignalKind, signal};

use super::args::CpArgs;
use super::notes::notes;
use super::{connect, runtime, sandboxes, target};
use crate::context::Context;
use crate::fail::Usage;
use crate::progress::Bar;
use crate::{out, signals};

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    /// Standard input or output.
    Stream,
    /// A path of this host.
    Host(&'a str),
    /// A path of a container.
    Guest { word: &'a str, path: &'a str },
}

/// What a word means: SANDBOX:PATH has a colon, a path of the host that has one begins with / or .
fn end(word: &str) -> Result<End<'_>> {
    match word.split_once(':') {
        _ if word == "-" => Ok(End::Stream),
        _ if word.is_empty() => Err(Usage::error("an empty word is no path")),
        Some((_, "")) if !word.starts_with(['/', '.']) => {
            Err(Usage::error(format!("{word:?} has no path: write {word}/ for the root of the container")))
        }
        Some((sandbox, path)) if !sandbox.is_empty() && !word.starts_with(['/', '.']) => {
            Ok(End::Guest { word: sandbox, path })
        }
        _ => Ok(End::Host(word)),
    }
}

/// Copies files.
pub(crate) fn cp(args: &CpArgs, context: &Context) -> Result<ExitCode> {
    let copied = match (end(&args.from)?, end(&args.to)?) {
        (End::Guest { word: from, .. }, End::Guest { word: to, .. }) => Err(Usage::error(format!(
            "one of the two has to be on this host; between containers: nelly cp {from}:PATH - | nelly cp - {to}:DIR"
        ))),
        (End::Guest { word, path }, to) => from_guest(args, word, path, &to, context),
        (from, End::Guest { word, path }) => to_guest(args, &from, word, path, context),
        _ => Err(Usage::error("one of the two has to be in a container: SANDBOX:PATH")),
    };
    copied.with_context(|| format!("cannot copy {} to {}", args.from, args.to))
}

/// The containers' side of a running sandbox.
fn connection(word: &str, context: &Context) -> Result<(Connection, tokio::runtime::Runtime)> {
    let (name, container) = target(word);
    let sandbox = sandboxes(context)?.find(name)?;
    if !sandbox.condition()?.is_live() {
        bail!("sandbox {name} does not run: `nelly start {name}` starts it");
    }
    let runtime = runtime()?;
    let connection = runtime.block_on(connect(&sandbox))?.of_container(container);
    Ok((connection, runtime))
}

fn from_guest(args: &CpArgs, word: &str, path: &str, to: &End<'_>, context: &Context) -> Result<ExitCode> {
    if *to == End::Stream && stdout().is_terminal() {
        return Err(Usage::error("standard output is a terminal: send the archive to a file or a pipe"));
    }
    let (connection, runtime) = connection(word, context)?;
    // What reads standard output may not know of holes.
    let sparse = *to != End::Stream;
    let source = CopySource { path: path.into(), follow: args.follow_link, sparse };
    let mut copied: CopyOut = runtime.block_on(connection.copy_out(source))?;
    let interrupted = watch(copied.interrupt()?)?;
    let mut counted = Counted::new(&mut copied, args.quiet);
    let mut notes = notes();
    let done = match to {
        End::Host(to) => {
            let note = &mut |sentence| notes.add(sentence);
            to_host(&mut counted, path.as_bytes(), to.as_bytes(), args.archive, note).map_err(Error::from)
        }
        _ => io::copy(&mut counted, &mut stdout().lock())
            .and_then(|_| stdout().lock().flush())
            .map_err(Error::from),
    };
    drop(counted);
    copied.notes().iter().for_each(|sentence| notes.add(sentence));
    notes.finish();
    finished(done, &interrupted)
}

fn to_guest(args: &CpArgs, from: &End<'_>, word: &str, path: &str, context: &Context) -> Result<ExitCode> {
    let mut beginning = Vec::new();
    let source = match from {
        End::Host(from) => Some(FromHost::open(from.as_bytes(), args.follow_link)?),
        _ => {
            if stdin().is_terminal() {
                return Err(Usage::error("standard input is a terminal: it has to be a tar archive"));
            }
            stdin().take(512).read_to_end(&mut beginning).context("cannot read standard input")?;
            if let Some(program) = compressed(&beginning) {
                bail!("the archive is compressed: put `{program} -dc |` before it");
            }
            None
        }
    };
    let wanted = match &source {
        Some(source) => source.target(path.as_bytes(), args.archive),
        None => CopyTarget { path: path.into(), archive: args.archive, tar: true, ..CopyTarget::default() },
    };
    let (connection, runtime) = connection(word, context)?;
    let copied: CopyIn = runtime.block_on(connection.copy_in(wanted))?;
    let interrupted = watch(copied.interrupt()?)?;
    let mut counted = Counted::new(copied, args.quiet);
    let mut notes = notes();
    let done = match &source {
        Some(source) => {
            source.write(&mut counted, args.archive, &mut |sentence| notes.add(sentence)).map_err(Error::from)
        }
        None => io::copy(&mut beginning.chain(stdin()), &mut counted).map(drop).map_err(Error::from),
    };
    let copied = counted.inner;
    let done = done.and_then(|()| {
        copied.finish()?.iter().for_each(|sentence| notes.add(sentence));
        Ok(())
    });
    notes.finish();
    finished(done, &interrupted)
}

/// The exit code, which after a signal is that of the signal.
fn finished(done: Result<()>, interrupted: &AtomicU8) -> Result<ExitCode> {
    match (done, interrupted.load(Ordering::Acquire)) {
        (Ok(()), _) => Ok(ExitCode::SUCCESS),
        (Err(error), 0) => Err(error),
        (Err(_), signal) => {
            out::message("interrupted: the files that were copied before are there, the last one is not");
            Ok(ExitCode::from(128 + signal))
        }
    }
}

/// How long a copy may take to clean up after a signal.
const CLEAN: Duration = Duration::from_secs(5);

/// Ends the copy at the first signal, such that its last file is removed. Answers where the signal
/// is told. Ignored signals stay ignored.
fn watch(interrupt: Interrupt) -> Result<Arc<AtomicU8>> {
    let told = Arc::new(AtomicU8::new(0));
    let came = Arc::clone(&told);
    let runtime = runtime()?;
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for (kind, number) in
        [(SignalKind::interrupt(), 2_u8), (SignalKind::terminate(), 15), (SignalKind::hangup(), 1)]
    {
        if signals::is_handled(kind)? {
            let _within = runtime.enter();
            let mut signal = signal(kind).context("cannot listen for signals")?;
            let sender = sender.clone();
            runtime.spawn(async move {
                while signal.recv().await.is_some() {
                    let _over = sender.send(number);
                }
            });
        }
    }
    let wait = move || {
        let Some(number) = runtime.block_on(receiver.recv()) else { return };
        came.store(number, Ordering::Release);
        interrupt.end();
        // It may wait for something else, such as its standard input or a second signal.
        let _second = runtime.block_on(async { tokio::time::timeout(CLEAN, receiver.recv()).await });
        std::process::exit(128 + i32::from(number));
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(told)
}

/// Counts the bytes that pass, and shows them.
struct Counted<T> {
    inner: T,
    bytes: u64,
    bar: Bar,
}

impl<T> Counted<T> {
    fn new(inner: T, quiet: bool) -> Self {
        Self { inner, bytes: 0, bar: Bar::new(quiet) }
    }

    fn count(&mut self, bytes: usize) -> usize {
        self.bytes += bytes as u64;
        self.bar.show("copying", self.bytes, None);
        bytes
    }
}

impl<T: Read> Read for Counted<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map(|bytes| self.count(bytes))
    }
}

impl<T: Write> Write for Counted<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes).map(|bytes| self.count(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_colon_is_in_a_container_unless_it_begins_as_a_path() {
        for (word, expected) in [
            ("-", Some(End::Stream)),
            ("file", Some(End::Host("file"))),
            ("./web:x", Some(End::Host("./web:x"))),
            ("/a:b", Some(End::Host("/a:b"))),
            ("../a:", Some(End::Host("../a:"))),
            (":x", Some(End::Host(":x"))),
            ("web:/a:b", Some(End::Guest { word: "web", path: "/a:b" })),
            ("web/tools:etc/", Some(End::Guest { word: "web/tools", path: "etc/" })),
            ("web:", None),
            ("", None),
        ] {
            assert_eq!(end(word).ok(), expected, "{word}");
        }
    }
}

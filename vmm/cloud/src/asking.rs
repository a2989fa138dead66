//! Having an image read by a process of its own, which has nothing but the files of the image and
//! those that it is to write.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nelly_disk::ChainFile;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::passed::send;
use crate::said::{ANSWER_MAX, Found, Question, Said, Wanted};

/// How long an image may take to be read: a large initrd on a slow disk takes a minute.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a process that has said all may take to end.
const GRACE: Duration = Duration::from_secs(5);
/// Most bytes that a process may say beside its answer, and how many of them are shown.
const WORDS_MAX: u64 = 64 << 10;
const WORDS_SHOWN: usize = 400;

/// Bytes of a refusal that are shown.
const SENTENCE_MAX: usize = 4096;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is nothing to boot.
    #[error("{0}")]
    Nothing(String),
    /// There are entries, but none of them is called so.
    #[error("{0}")]
    NoEntry(String),
    /// Kernel and initrds have as many bytes as they may not have.
    #[error("its kernel and initrd have {0} bytes, which is too much")]
    TooLarge(u64),
    /// The image is refused.
    #[error("{0}")]
    Refused(String),
    /// The process cannot be started.
    #[error("cannot start the process that reads it, {}", program.display())]
    Start {
        /// Its program.
        program: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It cannot be talked to.
    #[error("cannot talk to the process that reads it")]
    Talk(#[source] io::Error),
    /// It ended without an answer, or with one that cannot be.
    #[error("the process that reads it {how}{}", said(words))]
    Ended {
        /// How.
        how: String,
        /// What it said.
        words: String,
    },
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(", and said: {words}") }
}

/// The program that reads images, with the words that make it do so.
#[derive(Clone, Debug)]
pub struct Reader {
    program: PathBuf,
    words: Vec<OsString>,
    patience: Duration,
}

impl Reader {
    /// This program, which receives a [`Reading`](crate::Reading) by its standard input, and
    /// answers by its standard output.
    #[must_use]
    pub fn new(program: PathBuf, words: Vec<OsString>) -> Self {
        Self { program, words, patience: PATIENCE }
    }

    /// How the image of a chain boots. What is asked to be written goes to `outputs`, of which
    /// nothing is believed either: they have fewer bytes together than was asked for, and none has
    /// more than [`KERNEL_MAX`](crate::KERNEL_MAX) or [`INITRD_MAX`](crate::INITRD_MAX).
    ///
    /// # Errors
    /// [`AskError`].
    pub fn plan(
        &self,
        chain: &[ChainFile],
        wanted: &Wanted,
        outputs: &[&File],
    ) -> Result<Box<Found>, AskError> {
        let found = match self.ask(chain, wanted, outputs)? {
            Said::Found(found) => found,
            other => return Err(refusal(other)),
        };
        if let Some(why) = found.wrong() {
            return Err(ended(format!("says what cannot be: {why}")));
        }
        let mut total = 0_u64;
        for (output, most) in outputs.iter().zip(wanted.most_of_outputs()) {
            let bytes = output.metadata().map_err(AskError::Talk)?.len();
            // It was to stop there, whatever the caller can bear.
            if bytes > most {
                return Err(ended(format!("wrote {bytes} bytes to a file that gets at most {most}")));
            }
            total = total.saturating_add(bytes);
        }
        match wanted {
            Wanted::Plan { below, .. } if total >= *below && !outputs.is_empty() => {
                Err(AskError::TooLarge(total))
            }
            _ => Ok(found),
        }
    }

    /// The user that cloud-init in the image of a chain makes by itself, if it says so. It is the
    /// image's word.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn user(&self, chain: &[ChainFile]) -> Result<Option<String>, AskError> {
        match self.ask(chain, &Wanted::User, &[])? {
            Said::User(user) => Ok(user),
            other => Err(refusal(other)),
        }
    }

    fn ask(&self, chain: &[ChainFile], wanted: &Wanted, outputs: &[&File]) -> Result<Said, AskError> {
        let (mut ours, theirs) = UnixStream::pair().map_err(AskError::Talk)?;
        let (answers, says) = io::pipe().map_err(AskError::Talk)?;
        let errors = says.try_clone().map_err(AskError::Talk)?;
        let mut command = Command::new(&self.program);
        command.args(&self.words).env_clear().current_dir("/");
        command.stdin(OwnedFd::from(theirs)).stdout(says).stderr(errors);
        let started = command.spawn();
        // It holds the other ends.
        drop(command);
        let child = started.map_err(|source| AskError::Start { program: self.program.clone(), source })?;
        let mut child = Running(child);
        let text = serde_json::to_vec(&Question::of(chain, wanted)).map_err(|error| talk(error.into()))?;
        let files = chain.iter().map(|file| file.file.as_fd()).chain(outputs.iter().map(|file| file.as_fd()));
        let asked = send(&ours, &files.collect::<Vec<_>>()).and_then(|()| ours.write_all(&text));
        drop(ours);
        let heard = self.hear(answers, Instant::now() + self.patience)?;
        let status = child.end(Instant::now() + GRACE).map_err(talk)?;
        let words = || words(&heard);
        let said = heard
            .split(|byte| *byte == b'\n')
            .filter(|line| line.starts_with(b"{") || line.starts_with(b"\""));
        let said = said.filter_map(|line| serde_json::from_slice(line).ok()).next_back();
        match (status, said) {
            (Some(status), _) if !status.success() => {
                Err(AskError::Ended { how: format!("ended with {status}"), words: words() })
            }
            (_, Some(said)) => Ok(said),
            (_, None) => match asked {
                Ok(()) => Err(AskError::Ended { how: "gave no answer".to_owned(), words: words() }),
                Err(error) => Err(talk(error)),
            },
        }
    }

    /// What is said up to the end, bounded in bytes and in time.
    fn hear(&self, mut from: io::PipeReader, end: Instant) -> Result<Vec<u8>, AskError> {
        let mut heard = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let wait = Timespec::try_from(left).map_err(|error| talk(io::Error::other(error)))?;
            match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&wait)) {
                Ok(0) => {
                    let seconds = self.patience.as_secs();
                    return Err(ended(format!("did not end within {seconds} seconds, and was ended")));
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(talk(error.into())),
            }
            match from.read(&mut buffer) {
                Ok(0) => return Ok(heard),
                Ok(got) => heard.extend_from_slice(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(talk(error)),
            }
            if heard.len() as u64 > ANSWER_MAX + WORDS_MAX {
                return Err(ended("says more than it may, and was ended".to_owned()));
            }
        }
    }
}

fn talk(error: io::Error) -> AskError {
    AskError::Talk(error)
}

fn ended(how: String) -> AskError {
    AskError::Ended { how, words: String::new() }
}

/// What is no answer to what was asked.
fn refusal(said: Said) -> AskError {
    match said {
        Said::Nothing(words) => AskError::Nothing(short(words)),
        Said::NoEntry(words) => AskError::NoEntry(short(words)),
        Said::TooLarge(bytes) => AskError::TooLarge(bytes),
        Said::Refused(words) => AskError::Refused(short(words)),
        Said::Found(_) | Said::User(_) => ended("answers what it was not asked".to_owned()),
    }
}

/// A sentence that fills no terminal: an image says what its titles and paths are.
fn short(words: String) -> String {
    if words.len() <= SENTENCE_MAX {
        return words;
    }
    let end = words.floor_char_boundary(SENTENCE_MAX);
    format!("{} ... (cut)", &words[..end])
}

/// The end of what was said, without control characters.
fn words(heard: &[u8]) -> String {
    let text = String::from_utf8_lossy(heard);
    let text = text.trim();
    let much = text.chars().count().saturating_sub(WORDS_SHOWN);
    let clean = text.chars().skip(much).map(|letter| if letter.is_control() { ' ' } else { letter });
    clean.collect()
}

/// The process; ended when it is dropped.
struct Running(Child);

impl Running {
    /// Waits for its end; what does not end is ended. `None`: somebody else of this process has
    /// waited for it, as where SIGCHLD is ignored.
    fn end(&mut self, end: Instant) -> io::Result<Option<ExitStatus>> {
        let unknown = |error: io::Error| match error.raw_os_error() {
            Some(number) if number == rustix::io::Errno::CHILD.raw_os_error() => Ok(None),
            _ => Err(error),
        };
        loop {
            match self.0.try_wait() {
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => break,
                Ok(Some(status)) => return Ok(Some(status)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return unknown(error),
            }
        }
        self.0.kill()?;
        self.0.wait().map(Some).or_else(unknown)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended was waited for; neither fails for a child of one's own.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[cfg(test)]
mod tests;

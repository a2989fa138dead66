//! Images out of the store of another engine: what its `save` writes, read as it comes.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::Result;
use clap::ValueEnum;
use nelly_vmm::text;

use crate::fail::Hint;

/// Bytes that are shown of what an engine says when it fails: the last ones.
const SAID: usize = 2 << 10;

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// The store of the docker daemon that the command `docker` talks to
    Docker,
    /// The store of this user that the command `podman` reads
    Podman,
}

impl Engine {
    fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// Its command that writes images, each with its name.
    fn save(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["save", "--"],
            Self::Podman => &["save", "--quiet", "--format", "docker-archive", "--multi-image-archive", "--"],
        }
    }

    /// Begins to save images of its store.
    ///
    /// # Errors
    /// Its command is not there, or cannot be run.
    pub(super) fn begin(self, images: &[String]) -> Result<Saving> {
        self.begin_with(Path::new(self.word()), images)
    }

    fn begin_with(self, program: &Path, images: &[String]) -> Result<Saving> {
        let mut command = Command::new(program);
        command
            .args(self.save())
            .args(images)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let what = format!("{} save {}", self.word(), images.join(" "));
        let mut child = command.spawn().map_err(|error| {
            let hint = format!(
                "where {0} is, `{what} > images.tar`; then here `nelly image load -i images.tar`",
                self.word()
            );
            match error.kind() {
                io::ErrorKind::NotFound => {
                    Hint::error(format!("--from {0}: there is no command {0} in PATH", self.word()), hint)
                }
                _ => Hint::error(format!("--from {0}: cannot run {0}: {error}", self.word()), hint),
            }
        })?;
        let (out, said) =
            (child.stdout.take().expect("it is piped"), child.stderr.take().expect("it is piped"));
        Ok(Saving { child, out, said: Some(std::thread::spawn(move || last_words(said))), what })
    }
}

/// The archive, as the engine writes it. Its end is read only if the engine succeeded. Dropping it
/// ends the engine's command.
pub(super) struct Saving {
    child: Child,
    out: ChildStdout,
    said: Option<JoinHandle<Vec<u8>>>,
    what: String,
}

impl Read for Saving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.out.read(into)?;
        if count > 0 || into.is_empty() {
            return Ok(count);
        }
        let status = self.child.wait()?;
        if status.success() {
            return Ok(0);
        }
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said = text::line(said.trim());
        Err(io::Error::other(format!("`{}` failed ({status}): {said}", self.what)))
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _gone = self.child.kill();
        let _collected = self.child.wait();
    }
}

/// Reads all, so that the command does not wait, and holds the last of it.
fn last_words(mut said: ChildStderr) -> Vec<u8> {
    let (mut held, mut chunk) = (Vec::new(), [0; 1024]);
    while let Ok(count) = said.read(&mut chunk) {
        if count == 0 {
            break;
        }
        held.extend_from_slice(&chunk[..count]);
        let beyond = held.len().saturating_sub(SAID);
        held.drain(..beyond);
    }
    held
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn saving(script: &str) -> (tempfile::TempDir, Saving) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("engine");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let images = ["a:1", "b"].map(str::to_owned);
        let saving = Engine::Podman.begin_with(&program, &images).unwrap();
        (directory, saving)
    }

    #[test]
    fn the_archive_is_what_the_command_writes() {
        let (_directory, mut saving) =
            saving("head -c 3000000 /dev/zero >&2; printf '%s ' \"$@\"; head -c 300000 /dev/zero");
        let mut bytes = Vec::new();
        saving.read_to_end(&mut bytes).unwrap();
        let words = b"save --quiet --format docker-archive --multi-image-archive -- a:1 b ";
        assert!(bytes.starts_with(words) && bytes.len() == words.len() + 300_000, "{}", bytes.len());
    }

    #[test]
    fn a_command_that_fails_after_the_archive_is_an_error_and_says_why() {
        let (_directory, mut saving) =
            saving("echo archive; echo 'Error: a:1: image not known' >&2; exit 125");
        let error = saving.read_to_end(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("podman save a:1 b") && error.contains("125"), "{error}");
        assert!(error.ends_with("Error: a:1: image not known"), "{error}");
    }

    #[test]
    fn a_command_that_is_given_up_is_ended() {
        let (directory, saving) = saving("echo $$ >\"$0.pid\"; exec sleep 1000");
        let file = directory.path().join("engine.pid");
        let process = loop {
            match fs::read_to_string(&file) {
                Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                _ => std::thread::yield_now(),
            }
        };
        drop(saving);
        assert!(!Path::new("/proc").join(process).exists());
    }

    #[test]
    fn a_missing_command_says_what_to_do() {
        let error = Engine::Docker.begin_with(Path::new("/nonexistent/docker"), &["a".to_owned()]);
        let error = format!("{:#}", error.err().unwrap());
        assert!(error.contains("--from docker: there is no command docker in PATH"), "{error}");
    }
}

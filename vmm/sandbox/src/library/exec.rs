//! The description of a process in a running container.

use std::time::Duration;

use tokio::io::AsyncRead;

use super::capture::{HELD, collect, feed};
use super::process::{Input, Process};
use super::{Error, Output, Sandbox};
use crate::connect::ExecSpec;

/// A process to be started in a running container. What is not said is as of the container's first
/// process: user, working directory, environment, rights.
#[derive(Debug)]
#[must_use = "nothing is started before `output` or `spawn`"]
pub struct Exec<'a> {
    sandbox: &'a Sandbox,
    spec: ExecSpec,
    input: Input,
    limit: Option<Duration>,
    most: usize,
}

impl<'a> Exec<'a> {
    pub(super) fn new(sandbox: &'a Sandbox, args: Vec<String>) -> Self {
        let spec = ExecSpec { args, ..ExecSpec::default() };
        Self { sandbox, spec, input: Input::None, limit: None, most: HELD }
    }

    /// As this user: `name|uid[:group|gid]`, names of the container's own files.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.spec.user = user.into();
        self
    }

    /// In this directory, an absolute path.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.spec.cwd = directory.into();
        self
    }

    /// With this variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.spec.env.push(format!("{name}={value}"));
        self
    }

    /// With a terminal of this size. Its output is one stream, standard output.
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.spec.terminal = true;
        self.spec.size = (rows, columns);
        self
    }

    /// It reads these bytes.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// It reads what this reader has.
    pub fn stdin_from(mut self, reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        self.input = Input::Reader(Box::new(reader));
        self
    }

    /// It reads what is written to [`super::Pipes::stdin`]. Only [`Exec::spawn`] gives that.
    pub fn piped_stdin(mut self) -> Self {
        self.input = Input::Piped;
        self
    }

    /// [`Exec::output`] waits no longer than this: then the process is hung up as a dropped
    /// [`Process`] is.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// [`Exec::output`] holds so many bytes of standard output and of standard error, by default
    /// 16 MiB of each; what is beyond is read, counted and forgotten.
    pub fn hold_at_most(mut self, bytes: usize) -> Self {
        self.most = bytes;
        self
    }

    /// Starts it, and gives its streams to the caller.
    ///
    /// # Errors
    /// [`Error::Program`] when it cannot be executed; the sandbox does not run; with a terminal,
    /// whose input and output are one stream, the input must be piped or none.
    pub async fn spawn(mut self) -> Result<Process, Error> {
        let fed = matches!(self.input, Input::Bytes(_) | Input::Reader(_));
        if fed && self.spec.terminal {
            return Err(Error::invalid("stdin")("write to the stream of the terminal instead".into()));
        }
        let mut process = self.start().await?;
        if fed {
            tokio::spawn(feed(process.pipes.stdin.take(), self.input));
        }
        Ok(process)
    }

    /// Starts it, and waits until it has ended and nobody in the container holds its output open
    /// any more. Dropping the future hangs it up.
    ///
    /// # Errors
    /// As [`Exec::spawn`]; [`Error::TimedOut`].
    pub async fn output(mut self) -> Result<Output, Error> {
        let mut process = self.start().await?;
        let pipes = std::mem::take(&mut process.pipes);
        let process = tokio::sync::Mutex::new(process);
        let end = async { process.lock().await.wait().await };
        let over = async {
            let mut process = process.lock().await;
            process.hang_up();
            process.wait().await
        };
        collect(pipes, self.input, self.most, end, self.limit, over).await
    }

    async fn start(&mut self) -> Result<Process, Error> {
        self.spec.stdin = !matches!(self.input, Input::None);
        self.sandbox.start_exec(&self.spec).await
    }
}

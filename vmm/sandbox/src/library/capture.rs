//! What a process wrote, in bounded memory.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::process::Input;
use super::{EndReport, Error, Pipes};

/// Most bytes of each stream that are held, if the caller says no other number.
pub(super) const HELD: usize = 16 << 20;

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// How a process ended, and what it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code, or 128 + the signal that ended it.
    pub code: u8,
    /// `exited`, `signaled`, `oom_killed`, or `killed` when it ended with its container or machine.
    pub reason: String,
    /// Standard output; with a terminal, all output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Bytes of both that were read and not held, because they were more than the limit.
    pub lost_bytes: u64,
}

impl Output {
    /// Whether the exit code is 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

/// The beginning of a stream, and how much more there was.
#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    lost: u64,
}

impl Captured {
    fn add(&mut self, bytes: &[u8], most: usize) {
        let room = most.saturating_sub(self.bytes.len()).min(bytes.len());
        let (held, lost) = bytes.split_at(room);
        self.bytes.extend_from_slice(held);
        self.lost += lost.len() as u64;
    }

    /// Reads to the end, however much is held: a process that is not read would wait for ever.
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>, most: usize) {
        let Some(mut stream) = stream else { return };
        let mut chunk = vec![0; CHUNK];
        // A broken stream ends with its process, which says why.
        while let Ok(count) = stream.read(&mut chunk).await {
            if count == 0 {
                break;
            }
            self.add(&chunk[..count], most);
        }
    }
}

/// Writes all input, and ends it. A process that does not read it breaks the stream, which is no
/// failure.
pub(super) async fn feed(stream: Option<impl AsyncWrite + Unpin>, input: Input) {
    let Some(mut stream) = stream else { return };
    let _broken = match input {
        Input::None | Input::Piped => Ok(()),
        Input::Bytes(bytes) => stream.write_all(&bytes).await,
        Input::Reader(mut reader) => tokio::io::copy(&mut reader, &mut stream).await.map(drop),
    };
}

/// Feeds a process and reads what it writes until it has ended, which `end` tells. When `limit` is
/// over, `over` ends it, and tells how it ended.
pub(super) async fn collect(
    pipes: Pipes,
    input: Input,
    most: usize,
    end: impl Future<Output = Result<EndReport, Error>>,
    limit: Option<Duration>,
    over: impl Future<Output = Result<EndReport, Error>>,
) -> Result<Output, Error> {
    let Pipes { stdin, stdout, stderr, terminal } = pipes;
    let (mut out, mut err) = (Captured::default(), Captured::default());
    let work = async {
        // A terminal is one stream for both ways.
        let (stdin, stdout): (Option<Box<dyn AsyncWrite + Send + Unpin>>, Option<Reader>) = match stdin {
            Some(both) if terminal => {
                let (read, write) = tokio::io::split(both);
                (Some(Box::new(write)), Some(Box::new(read)))
            }
            stdin => (stdin.map(|stdin| Box::new(stdin) as _), stdout.map(|stdout| Box::new(stdout) as _)),
        };
        let feeding = feed(stdin, input);
        let done = async {
            let ((), (), end) = tokio::join!(out.read(stdout, most), err.read(stderr, most), end);
            end
        };
        let (mut feeding, mut done) = (std::pin::pin!(feeding), std::pin::pin!(done));
        tokio::select! {
            end = &mut done => end,
            () = &mut feeding => done.await,
        }
    };
    let ended = match limit {
        None => Ok(work.await?),
        // It is boxed, for it holds the buffers of both streams.
        Some(limit) => match tokio::time::timeout(limit, Box::pin(work)).await {
            Ok(end) => Ok(end?),
            Err(_) => Err((limit, over.await?)),
        },
    };
    let (Ok(EndReport { exit, .. }) | Err((_, EndReport { exit, .. }))) = &ended;
    let output = Output {
        code: exit.code,
        reason: exit.reason.clone(),
        lost_bytes: out.lost + err.lost,
        stdout: out.bytes,
        stderr: err.bytes,
    };
    match ended {
        Ok(_) => Ok(output),
        Err((limit, _)) => Err(Error::TimedOut { limit, output: Box::new(output) }),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::net::UnixStream;

    use super::super::process::report;
    use super::*;
    use crate::state::Exit;

    fn ended(code: u8) -> Result<EndReport, Error> {
        Ok(report(Exit { code, reason: "exited" }))
    }

    /// Streams, and the process's ends of input and output.
    fn pipes() -> (Pipes, UnixStream, UnixStream) {
        let (stdin, input) = UnixStream::pair().unwrap();
        let (stdout, output) = UnixStream::pair().unwrap();
        (Pipes { stdin: Some(stdin), stdout: Some(stdout), ..Pipes::default() }, input, output)
    }

    #[tokio::test]
    async fn output_is_bounded_and_all_of_it_is_read() {
        let (pipes, mut input, mut output) = pipes();
        let process = async {
            let mut read = Vec::new();
            input.read_to_end(&mut read).await.unwrap();
            output.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
            drop(output);
            assert_eq!(read, b"in");
            ended(3)
        };
        let output =
            collect(pipes, Input::Bytes(b"in".to_vec()), 10, process, None, pending()).await.unwrap();
        assert_eq!((output.code, output.reason.as_str(), output.success()), (3, "exited", false));
        assert_eq!((&output.stdout[..], output.lost_bytes), (&[b'x'; 10][..], (1 << 20) - 10));
    }

    #[tokio::test]
    async fn input_that_nobody_reads_neither_fails_nor_waits() {
        for open in [true, false] {
            let (pipes, input, output) = pipes();
            drop(output);
            let held = open.then_some(input);
            let bytes = Input::Bytes(vec![0; 8 << 20]);
            let output = collect(pipes, bytes, 10, ready(ended(0)), None, pending()).await.unwrap();
            assert!(output.success() && output.stdout.is_empty());
            drop(held);
        }
        let (pipes, _input, output) = pipes();
        drop(output);
        // A reader that never has anything.
        let (never, _open) = UnixStream::pair().unwrap();
        collect(pipes, Input::Reader(Box::new(never)), 10, ready(ended(0)), None, pending()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_before_the_time_was_over_is_there() {
        let (pipes, _input, mut output) = pipes();
        output.write_all(b"begun").await.unwrap();
        let limit = Duration::from_secs(9);
        let error =
            collect(pipes, Input::None, 10, pending(), Some(limit), ready(ended(129))).await.unwrap_err();
        let Error::TimedOut { limit, output: said } = &error else { panic!("{error}") };
        assert_eq!((limit.as_secs(), said.code, &said.stdout[..]), (9, 129, &b"begun"[..]));
        assert_eq!(error.to_string(), "the process did not end within 9000 ms");
    }

    #[tokio::test]
    async fn a_terminal_is_one_stream_for_both_ways() {
        let (ours, mut terminal) = UnixStream::pair().unwrap();
        let pipes = Pipes { stdin: Some(ours), terminal: true, ..Pipes::default() };
        let process = async {
            let mut typed = [0; 2];
            terminal.read_exact(&mut typed).await.unwrap();
            terminal.write_all(&typed).await.unwrap();
            drop(terminal);
            ended(0)
        };
        let output =
            collect(pipes, Input::Bytes(b"ab".to_vec()), 10, process, None, pending()).await.unwrap();
        assert_eq!((&output.stdout[..], output.lost_bytes), (&b"ab"[..], 0));
    }
}

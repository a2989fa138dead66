//! One client at the output and the input of a process, as `sandbox.proto` describes an attachment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixStream, unix};
use tokio::sync::oneshot;

use super::offers::{Offers, STDIN, Token, client_gone};
use super::output::{Output, registered};

/// Bytes of input that are moved at once.
const CHUNK: usize = 16 << 10;

/// Where attachments write; none when the process has no input, or its machine none any more.
pub type Input = Arc<tokio::sync::Mutex<Option<OwnedWriteHalf>>>;

/// How many clients are attached.
#[derive(Clone, Debug, Default)]
pub struct Clients(Arc<AtomicU32>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Attached(Arc<AtomicU32>);

impl Clients {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more.
    #[must_use]
    pub fn one(&self) -> Attached {
        self.0.fetch_add(1, Ordering::Relaxed);
        Attached(Arc::clone(&self.0))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a client is attached to.
pub struct Attachment {
    /// What it reads.
    pub output: Arc<Output>,
    /// Where it writes, if it may.
    pub input: Option<Input>,
    /// The end of the client's input ends that of the process.
    pub ends_input: bool,
    /// It hears all from the first byte on, and output waits for it while it reads.
    pub is_first: bool,
    /// Where it is counted.
    pub clients: Clients,
}

/// A stream for a client that is not offered yet. What can fail has succeeded.
pub struct Prepared {
    near: UnixStream,
    far: OwnedFd,
    token: Token,
}

impl Prepared {
    /// Makes the stream and its token.
    ///
    /// # Errors
    /// The system has no descriptor or no random bytes left.
    pub fn new() -> io::Result<Self> {
        let (near, far) = std::os::unix::net::UnixStream::pair()?;
        Ok(Self { near: registered(near)?, far: far.into(), token: super::offers::token()? })
    }

    /// Offers the stream for a minute, and serves it for as long as its client stays.
    #[must_use]
    pub fn offer(self, offers: &Offers, attachment: Attachment) -> Token {
        let Self { near, far, token } = self;
        let claim = offers.offer_as(token, STDIN, vec![far]);
        tokio::spawn(attachment.serve(near, claim));
        token
    }
}

impl Attachment {
    async fn serve(self, near: UnixStream, claim: oneshot::Receiver<UnixStream>) {
        let _counted = self.clients.one();
        let (typed, mut shown): (OwnedReadHalf, unix::OwnedWriteHalf) = near.into_split();
        let input = async {
            self.pass_on(typed).await;
            std::future::pending::<()>().await;
        };
        let output = async {
            if self.is_first {
                self.output.serve_all(&mut shown).await
            } else {
                self.output.serve(&mut shown).await
            }
        };
        tokio::select! {
            // First what its client typed, then that it is gone.
            biased;
            () = input => {}
            _ = output => {}
            () = client_gone(claim) => {}
        }
    }

    /// Passes the client's input on, to its end or until the process reads no more.
    async fn pass_on(&self, mut typed: OwnedReadHalf) {
        let mut buffer = [0; CHUNK];
        loop {
            match typed.read(&mut buffer).await {
                Ok(count @ 1..) => {
                    let Some(input) = &self.input else { continue };
                    if let Some(input) = input.lock().await.as_mut()
                        && input.write_all(&buffer[..count]).await.is_err()
                    {
                        return;
                    }
                }
                Ok(0) if self.ends_input && !is_gone(&typed) => {
                    if let Some(input) = &self.input
                        && let Some(mut input) = input.lock().await.take()
                    {
                        // A process that has ended reads no end.
                        let _ended = input.shutdown().await;
                    }
                    return;
                }
                _ => return,
            }
        }
    }
}

/// Whether the client has closed its end, or died, and not only ended what it sends.
fn is_gone(typed: &OwnedReadHalf) -> bool {
    let stream: &UnixStream = typed.as_ref();
    let stream = stream.as_fd();
    let mut polled = [PollFd::new(&stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_err() || polled[0].revents().contains(PollFlags::HUP)
}

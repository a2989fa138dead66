//! Assigning the host's connections to streams: a connection begins with a token that the host got
//! in an answer.
//!
//! A token is random, can be used once, and expires. Each connection reads its token in a task of
//! its own, with a time limit. If there are more connections without a token than the host can have
//! made, the oldest is closed. So connections that send nothing, or a wrong token, do not delay the
//! right one.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use nelly_protocol::ports::TOKEN_BYTES;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::{Stream, lock};
use crate::sys;

/// Time limits for the host.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the answer with the token to the connection.
    pub claim: Duration,
    /// From the connection to the token.
    pub proof: Duration,
}

impl Default for Patience {
    /// Much longer than a busy host needs.
    fn default() -> Self {
        Self { claim: Duration::from_secs(60), proof: Duration::from_secs(10) }
    }
}

/// Number of connections without a token that may wait in addition to the number of open tokens.
const SPARE: usize = 16;

type Token = [u8; TOKEN_BYTES];

/// The streams whose tokens were given to the host, but which it has not connected yet.
#[derive(Debug)]
pub struct Promises {
    patience: Patience,
    waiting: Mutex<HashMap<Token, oneshot::Sender<Stream>>>,
    unproven: Mutex<VecDeque<AbortHandle>>,
}

impl Promises {
    /// An empty set.
    #[must_use]
    pub fn new(patience: Patience) -> Arc<Self> {
        Arc::new(Self { patience, waiting: Mutex::default(), unproven: Mutex::default() })
    }

    /// Creates the token of a stream.
    pub(crate) fn promise(self: &Arc<Self>) -> io::Result<Promised> {
        let mut token = [0; TOKEN_BYTES];
        sys::random_bytes(&mut token)?;
        let (keep, stream) = oneshot::channel();
        lock(&self.waiting).insert(token, keep);
        Ok(Promised { token, stream, promises: self.clone() })
    }

    /// The host does not connect the stream of this token: whoever waits for it waits no longer.
    pub fn forget(&self, token: &[u8]) {
        if let Ok(token) = Token::try_from(token) {
            lock(&self.waiting).remove(&token);
        }
    }

    /// Accepts a connection from the host. Must be called within the event loop.
    pub fn admit(self: &Arc<Self>, connection: OwnedFd) {
        let promises = self.clone();
        let task = tokio::spawn(async move {
            // On any failure the connection is dropped, and thereby closed.
            if let Ok(Ok((token, stream))) = timeout(promises.patience.proof, prove(connection)).await
                && let Some(keep) = lock(&promises.waiting).remove(&token)
            {
                let _ = keep.send(stream);
            }
        });
        let right = lock(&self.waiting).len();
        let mut unproven = lock(&self.unproven);
        unproven.retain(|task| !task.is_finished());
        if unproven.len() >= right + SPARE
            && let Some(oldest) = unproven.pop_front()
        {
            oldest.abort();
        }
        unproven.push_back(task.abort_handle());
    }
}

/// Reads the token of a connection, and no byte after it.
async fn prove(connection: OwnedFd) -> io::Result<(Token, Stream)> {
    let stream = Stream::new(connection)?;
    let mut token = [0; TOKEN_BYTES];
    let mut rest = &mut token[..];
    while !rest.is_empty() {
        match stream.read(rest).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => rest = &mut rest[n..],
        }
    }
    Ok((token, stream))
}

/// A stream that the host may still connect. Dropping it invalidates the token.
#[derive(Debug)]
pub(crate) struct Promised {
    token: Token,
    stream: oneshot::Receiver<Stream>,
    promises: Arc<Promises>,
}

impl Promised {
    /// The token for the host.
    pub(crate) fn token(&self) -> Vec<u8> {
        self.token.to_vec()
    }

    /// Waits for the host to connect the stream; `None` if the token expires.
    pub(crate) async fn stream(mut self) -> Option<Stream> {
        timeout(self.promises.patience.claim, &mut self.stream).await.ok()?.ok()
    }
}

impl Drop for Promised {
    fn drop(&mut self) {
        lock(&self.promises.waiting).remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn run(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a loop").block_on(work);
    }

    /// A connection of the host that has said `bytes`.
    fn dial(promises: &Arc<Promises>, bytes: &[u8]) -> UnixStream {
        let (mut host, agent) = UnixStream::pair().expect("a pair of sockets");
        promises.admit(agent.into());
        host.write_all(bytes).expect("room for a token");
        host
    }

    /// Lets the tasks run until the other end of a connection is closed.
    async fn closed(mut host: UnixStream) {
        host.set_nonblocking(true).expect("a socket");
        while host.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn a_token_is_good_for_one_connection() {
        run(async {
            let promises = Promises::new(Patience::default());
            let promised = promises.promise().expect("a token");
            let token = promised.token();
            let mut wrong = token.clone();
            wrong[15] ^= 1;
            let wrong = dial(&promises, &wrong);
            closed(wrong).await;
            let right = dial(&promises, &[&token[..], b"and the first byte of the stream"].concat());
            let stream = promised.stream().await.expect("the stream");
            let mut bytes = [0; 64];
            let count = stream.read(&mut bytes).await.expect("bytes");
            assert_eq!(&bytes[..count], b"and the first byte of the stream");
            closed(dial(&promises, &token)).await;
            drop((stream, right));
        });
    }

    #[test]
    fn the_right_one_comes_through_ten_thousand_silent_ones() {
        run(async {
            let promises = Promises::new(Patience::default());
            let promised = promises.promise().expect("a token");
            let mut silent = Vec::new();
            for n in 0..10_000_usize {
                silent.push(dial(&promises, &[0; TOKEN_BYTES][..n % TOKEN_BYTES]));
                // The other ends of those that had to go are closed; this process has not
                // descriptors for all of them.
                if silent.len() > 2 * SPARE {
                    drop(silent.remove(0));
                    tokio::task::yield_now().await;
                }
            }
            assert!(lock(&promises.unproven).len() <= SPARE + 1);
            let _right = dial(&promises, &promised.token());
            assert!(promised.stream().await.is_some());
        });
    }

    #[test]
    fn many_that_are_right_are_all_let_in() {
        run(async {
            let promises = Promises::new(Patience::default());
            let promised: Vec<_> = (0..200).map(|_| promises.promise().expect("a token")).collect();
            let tokens: Vec<_> = promised.iter().map(Promised::token).collect();
            // All stand before the first of them has said anything.
            let mut hosts: Vec<_> = tokens.iter().map(|_| dial(&promises, b"")).collect();
            tokio::task::yield_now().await;
            for (host, token) in hosts.iter_mut().zip(tokens) {
                host.write_all(&token).expect("room for a token");
            }
            for promised in promised {
                assert!(promised.stream().await.is_some());
            }
        });
    }

    #[test]
    fn a_token_that_the_host_gives_up_is_waited_for_no_longer() {
        run(async {
            let promises = Promises::new(Patience { claim: Duration::MAX, ..Patience::default() });
            let [given_up, other] = [(); 2].map(|()| promises.promise().expect("a token"));
            let token = given_up.token();
            for unknown in [&token[1..], &[0; TOKEN_BYTES]] {
                promises.forget(unknown);
            }
            assert_eq!(lock(&promises.waiting).len(), 2);
            promises.forget(&token);
            assert!(given_up.stream().await.is_none());
            closed(dial(&promises, &token)).await;
            let _right = dial(&promises, &other.token());
            assert!(other.stream().await.is_some());
        });
    }

    #[test]
    fn time_runs_out_for_tokens_and_for_connections() {
        run(async {
            let soon = Duration::from_millis(1);
            let promises = Promises::new(Patience { claim: soon, proof: soon });
            let promised = promises.promise().expect("a token");
            let token = promised.token();
            closed(dial(&promises, &token[..15])).await;
            assert!(promised.stream().await.is_none());
            assert!(lock(&promises.waiting).is_empty());
            closed(dial(&promises, &token)).await;
        });
    }
}

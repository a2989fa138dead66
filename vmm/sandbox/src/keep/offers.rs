//! What the stream socket hands out: descriptors, each set for the one client that knows its token.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nelly_protocol::sandbox::TOKEN_BYTES;
use nelly_vmm::sys;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// How long a token is good.
const GOOD_FOR: Duration = Duration::from_mins(1);

/// How long that of a process is good that ends with its client: the process of one that died
/// before it showed its token runs no longer than that.
const GOOD_FOR_PROCESS: Duration = Duration::from_secs(10);

/// How long a client may take to show its token.
const SHOW_WITHIN: Duration = Duration::from_secs(10);

/// The secret that proves a stream's client.
pub type Token = [u8; TOKEN_BYTES];

/// Which streams a set of descriptors holds, as `sandbox.proto` says.
pub const STDIN: u8 = 1;
/// Standard output.
pub const STDOUT: u8 = 2;
/// Standard error.
pub const STDERR: u8 = 4;

struct Offer {
    streams: u8,
    descriptors: Vec<OwnedFd>,
    claimed: oneshot::Sender<UnixStream>,
}

/// What waits to be claimed.
#[derive(Clone, Default)]
pub struct Offers(Arc<Mutex<HashMap<Token, Offer>>>);

/// A new token.
///
/// # Errors
/// The system has no random bytes.
pub fn token() -> io::Result<Token> {
    let mut token = Token::default();
    nelly_vmm::sys::random(&mut token)?;
    Ok(token)
}

impl Offers {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<Token, Offer>> {
        self.0.lock().expect("nobody panics while an offer is added or taken")
    }

    /// Offers descriptors for a minute. Returns the token, and the connection of whoever claimed
    /// them, which ends when its client is done or dies; it fails if nobody did in time.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn offer(
        &self,
        streams: u8,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<(Token, oneshot::Receiver<UnixStream>)> {
        let token = token()?;
        Ok((token, self.offer_as(token, streams, descriptors)))
    }

    /// The same with a token that was made before.
    #[must_use]
    pub fn offer_as(
        &self,
        token: Token,
        streams: u8,
        descriptors: Vec<OwnedFd>,
    ) -> oneshot::Receiver<UnixStream> {
        self.offer_for(GOOD_FOR, token, streams, descriptors)
    }

    /// The same for the streams of a process that ends with its client, for ten seconds.
    #[must_use]
    pub fn offer_process(
        &self,
        token: Token,
        streams: u8,
        descriptors: Vec<OwnedFd>,
    ) -> oneshot::Receiver<UnixStream> {
        self.offer_for(GOOD_FOR_PROCESS, token, streams, descriptors)
    }

    fn offer_for(
        &self,
        good_for: Duration,
        token: Token,
        streams: u8,
        descriptors: Vec<OwnedFd>,
    ) -> oneshot::Receiver<UnixStream> {
        let (claimed, claim) = oneshot::channel();
        self.waiting().insert(token, Offer { streams, descriptors, claimed });
        let offers = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(good_for).await;
            offers.waiting().remove(&token);
        });
        claim
    }

    /// Takes an offer back, as if the client that it was made for had died.
    pub fn withdraw(&self, token: &Token) {
        self.waiting().remove(token);
    }

    /// Serves one client of the stream socket.
    pub async fn serve(self, mut client: UnixStream) {
        let mut token = Token::default();
        let shown = tokio::time::timeout(SHOW_WITHIN, client.read_exact(&mut token)).await;
        let Ok(Ok(_)) = shown else { return };
        let offer = self.waiting().remove(&token);
        let Some(Offer { streams, descriptors, claimed }) = offer else {
            // It may be gone already.
            let _refused = client.try_write(&[0]);
            return;
        };
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        // There is room in a new socket. One that was not told finds its connection closed.
        if sys::send(client.as_fd(), &[streams], &borrowed).is_ok() {
            // Nobody waits for the connection of an attachment that has ended meanwhile.
            let _left = claimed.send(client);
        }
    }
}

/// Waits until whoever claimed an offer closes its connection, or has not claimed it in time.
pub async fn client_gone(claim: oneshot::Receiver<UnixStream>) {
    if let Ok(mut client) = claim.await {
        // It has nothing more to say; anything else than silence is an end.
        let _end = client.read(&mut [0]).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[tokio::test]
    async fn a_token_is_good_once_and_nothing_else_is() {
        let offers = Offers::default();
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let (token, claim) = offers.offer(STDOUT, vec![far.into()]).unwrap();
        let show = |token: Token| {
            let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
            server.set_nonblocking(true).unwrap();
            (&client).write_all(&token).unwrap();
            let serve = offers.clone().serve(UnixStream::from_std(server).unwrap());
            async move {
                serve.await;
                let (mut byte, mut descriptors) = ([9], Vec::new());
                sys::receive(client.as_fd(), &mut byte, &mut descriptors, 3).unwrap();
                (client, byte[0], descriptors)
            }
        };
        let mut wrong = token;
        wrong[15] ^= 1;
        let (_client, streams, none) = show(wrong).await;
        assert!(streams == 0 && none.is_empty());
        let (client, streams, mut descriptors) = show(token).await;
        assert_eq!((streams, descriptors.len()), (STDOUT, 1));
        near.write_all(b"x").unwrap();
        let mut byte = [0];
        std::fs::File::from(descriptors.remove(0)).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        let (_second, streams, none) = show(token).await;
        assert!(streams == 0 && none.is_empty());
        let gone = tokio::spawn(client_gone(claim));
        tokio::task::yield_now().await;
        assert!(!gone.is_finished());
        drop(client);
        gone.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_claims_is_closed_after_a_minute() {
        let offers = Offers::default();
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let (_token, claim) = offers.offer(STDIN, vec![far.into()]).unwrap();
        client_gone(claim).await;
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_process_of_a_client_that_died_is_not_waited_for_a_minute() {
        let offers = Offers::default();
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let began = tokio::time::Instant::now();
        client_gone(offers.offer_process(token().unwrap(), STDIN, vec![far.into()])).await;
        assert!(began.elapsed() < Duration::from_secs(15));
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
    }
}

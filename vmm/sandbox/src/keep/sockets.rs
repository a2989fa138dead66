//! The two sockets of a keeper: made in its runtime directory, made anew when that vanishes, and
//! open to the keeper's own user and root only.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use nelly_protocol::sandbox::{CONTROL_SOCKET, STREAM_SOCKET};
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::Keeper;
use super::offers::Offers;
use super::service::service;
use crate::state::StateError;
use crate::state::runtime::RuntimeDir;

/// Most connections to one socket at a time.
const CONNECTIONS_MOST: usize = 256;

/// How long accepting waits after it failed, as it does when the process has no descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Connections of clients, each counted while it is open: it holds a copy of what is inside.
#[derive(Clone, Default)]
pub struct Open(Arc<Connection>);

/// One of them.
#[derive(Clone, Default)]
struct Connection(Arc<()>);

impl Open {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        Arc::strong_count(&self.0.0) - 1
    }
}

/// Clients as they connect; who may not is turned away.
struct Clients {
    listener: UnixListener,
    open: Open,
    again: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Clients {
    fn new(directory: &RuntimeDir, name: &str, open: Open) -> Result<Self, StateError> {
        let listener = directory.bind(name)?;
        let refuse = |source| StateError::Io { action: "serve", path: directory.path().join(name), source };
        listener.set_nonblocking(true).map_err(refuse)?;
        let listener = UnixListener::from_std(listener).map_err(refuse)?;
        Ok(Self { listener, open, again: None })
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Client> {
        loop {
            if let Some(again) = &mut self.again {
                std::task::ready!(again.as_mut().poll(context));
                self.again = None;
            }
            match std::task::ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) if may(&stream) && self.open.count() < CONNECTIONS_MOST => {
                    return Poll::Ready(Client { stream, _open: Connection::clone(&self.open.0) });
                }
                Ok(_) => {}
                Err(_) => self.again = Some(Box::pin(tokio::time::sleep(ACCEPT_AGAIN))),
            }
        }
    }
}

/// Whether the process at the other end is of this user, or root's.
fn may(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

impl Stream for Clients {
    type Item = io::Result<Client>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_accept(context).map(|client| Some(Ok(client)))
    }
}

/// A connection that is counted while it is open.
struct Client {
    stream: UnixStream,
    _open: Connection,
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Both sockets, served until this is dropped.
pub struct Sockets {
    server: Server,
    streams: JoinHandle<()>,
}

impl Sockets {
    /// Makes both in `directory`, in the place of those that a keeper left there that was killed.
    /// `open` counts the connections to the control socket.
    ///
    /// # Errors
    /// They cannot be made.
    pub async fn serve(
        directory: &RuntimeDir,
        keeper: &Arc<Keeper>,
        open: &Open,
    ) -> Result<Self, StateError> {
        let control = Clients::new(directory, CONTROL_SOCKET, open.clone())?;
        let clients = Clients::new(directory, STREAM_SOCKET, Open::default())?;
        let mut server =
            Server::new().register_service(service(Arc::clone(keeper))).add_listener(Listener::new(control));
        let refuse = |error| StateError::Io {
            action: "serve",
            path: directory.path().join(CONTROL_SOCKET),
            source: io::Error::other(error),
        };
        server.start().await.map_err(refuse)?;
        let streams = tokio::spawn(hand_out(clients, keeper.offers().clone()));
        Ok(Self { server, streams })
    }

    /// Whether both are in `directory`.
    #[must_use]
    pub fn are_in(directory: &Path) -> bool {
        [CONTROL_SOCKET, STREAM_SOCKET].iter().all(|name| directory.join(name).symlink_metadata().is_ok())
    }

    /// Listens no more; connections that there are stay.
    pub async fn close(mut self) {
        self.server.stop_listen().await;
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.streams.abort();
    }
}

async fn hand_out(mut clients: Clients, offers: Offers) {
    loop {
        let Client { stream, _open } = std::future::poll_fn(|context| clients.poll_accept(context)).await;
        let offers = offers.clone();
        tokio::spawn(async move {
            offers.serve(stream).await;
            drop(_open);
        });
    }
}

/// Tells when something in a directory is removed, or the directory itself.
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches `directory`.
    ///
    /// # Errors
    /// It is not there, or the system cannot watch so many.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let gone = inotify::WatchFlags::DELETE
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::MOVE_SELF;
        inotify::add_watch(&watch, directory, gone)?;
        #[expect(deprecated, reason = "an OwnedFd means the same descriptor for as long as it lives")]
        let watch = AsyncFd::with_interest(watch, Interest::READABLE)?;
        Ok(Self(watch))
    }

    /// Waits until something is gone.
    pub async fn gone(&self) {
        // An error means that nothing can be heard any more: look, too.
        let _ready = self.0.readable().await;
    }
}

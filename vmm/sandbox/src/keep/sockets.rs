//! The two sockets of a keeper: made in its runtime directory, made anew when that vanishes, and
//! open to the keeper's own user and root only.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use nelly_protocol::sandbox::{CONTROL_SOCKET, STREAM_SOCKET};
use nelly_vmm::sys::Removals;
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
    stream.peer_cred().is_ok_and(|peer| admits(own, peer.uid()))
}

/// Whether a process of user `own` serves one of user `peer`.
fn admits(own: u32, peer: u32) -> bool {
    peer == own || peer == 0
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
pub struct Watch(AsyncFd<Removals>);

impl Watch {
    /// Watches `directory`.
    ///
    /// # Errors
    /// It is not there, or the system cannot watch so many.
    pub fn new(directory: &Path) -> io::Result<Self> {
        #[expect(deprecated, reason = "it means the same descriptor for as long as it lives")]
        let watch = AsyncFd::with_interest(Removals::new(directory)?, Interest::READABLE)?;
        Ok(Self(watch))
    }

    /// Waits until something is gone. On some systems it ends, too, when something was made.
    pub async fn gone(&self) {
        // An error means that nothing can be heard any more: look, too.
        let _ready = self.0.readable().await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::process::Uid;
    use rustix::thread::set_thread_res_uid;
    use tokio::sync::oneshot;

    use super::*;
    use crate::state::Id;

    #[test]
    fn its_own_user_and_root_are_served_and_nobody_else() {
        for (own, peer, served) in [
            (0, 0, true),
            (1000, 1000, true),
            (1000, 0, true),
            (1000, 1001, false),
            (0, 1000, false),
            (0, u32::MAX, false),
        ] {
            assert_eq!(admits(own, peer), served, "{own} {peer}");
        }
    }

    #[tokio::test]
    async fn a_process_of_another_user_is_turned_away_whatever_the_modes_of_the_files() {
        let home = tempfile::tempdir_in("/tmp").unwrap();
        let at = |name: &str| (name == "NELLY_HOME").then(|| home.path().to_owned());
        let directory = RuntimeDir::make(at, Id::random().unwrap()).unwrap();
        let open = Open::default();
        let mut clients = Clients::new(&directory, CONTROL_SOCKET, open.clone()).unwrap();
        // By their modes everybody may enter.
        let path = directory.path().join(CONTROL_SOCKET);
        for above in path.ancestors().take_while(|above| above.starts_with(home.path())) {
            std::fs::set_permissions(above, Permissions::from_mode(0o777)).unwrap();
        }
        let accepts = std::future::poll_fn(|context| clients.poll_accept(context));
        let mut accepts = std::pin::pin!(accepts);
        // Only root can be another user; for others the rule alone is tried, above.
        if rustix::process::geteuid().is_root() {
            let (tell, told) = oneshot::channel();
            let path = path.clone();
            // A user of this thread alone, which ends with it.
            std::thread::spawn(move || {
                let nobody = Uid::from_raw(65_534);
                set_thread_res_uid(nobody, nobody, nobody).unwrap();
                let heard = std::os::unix::net::UnixStream::connect(path).and_then(|mut stream| {
                    let mut heard = Vec::new();
                    stream.read_to_end(&mut heard).map(|_| heard)
                });
                let _ = tell.send(heard);
            });
            tokio::select! {
                biased;
                _ = &mut accepts => panic!("it is served"),
                heard = told => assert_eq!(heard.unwrap().unwrap(), b"", "it hears the end"),
            }
            assert_eq!(open.count(), 0);
        }
        let _own = UnixStream::connect(&path).await.unwrap();
        let client = accepts.await;
        assert_eq!(client.stream.peer_cred().unwrap().uid(), rustix::process::geteuid().as_raw());
        assert_eq!(open.count(), 1);
    }
}

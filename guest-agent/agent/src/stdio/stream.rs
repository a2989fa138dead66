//! Non-blocking file descriptors in the event loop.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sys;

/// Waits for a non-blocking connect.
///
/// # Errors
/// The error of the connect.
pub async fn connected(socket: OwnedFd) -> io::Result<OwnedFd> {
    let waiting = sys::watch(socket, Interest::WRITABLE)?;
    waiting.writable().await?.retain_ready();
    let socket = waiting.into_inner();
    sys::connect_result(socket.as_fd())?;
    Ok(socket)
}

/// A non-blocking file descriptor in the event loop.
#[derive(Debug)]
pub struct Stream(pub(super) AsyncFd<OwnedFd>);

impl Stream {
    /// Makes a file descriptor non-blocking and registers it with the event loop.
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::set_nonblocking(fd.as_fd(), true)?;
        Ok(Self(sys::watch(fd, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// The descriptor, out of the event loop and blocking again.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub(crate) fn into_blocking(self) -> io::Result<OwnedFd> {
        let descriptor = self.0.into_inner();
        sys::set_nonblocking(descriptor.as_fd(), false)?;
        Ok(descriptor)
    }

    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), buffer)).await
    }

    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.0.async_io(Interest::WRITABLE, |fd| sys::write(fd.as_fd(), bytes)).await?;
            bytes = bytes.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Accepts a connection, if this listens.
    pub(crate) async fn accept(&self) -> io::Result<OwnedFd> {
        self.0.async_io(Interest::READABLE, |fd| sys::accept(fd.as_fd())).await
    }

    /// Waits until the peer has closed both directions; received data is discarded. After the peer
    /// has shut down only its sending direction this waits forever: then only a write detects the
    /// end.
    pub(super) async fn gone(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return };
            let mut bytes = [0; 256];
            match ready.try_io(|fd| sys::read(fd.as_fd(), &mut bytes)) {
                Ok(Ok(0)) if !sys::hung_up(self.as_fd()) => return pending().await,
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    }

    /// Waits until all readers of this pipe have closed it.
    pub(super) async fn unread(&self) {
        loop {
            match self.0.ready(Interest::ERROR).await {
                Ok(ready) if ready.ready().is_error() => return,
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => pending().await,
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match ready.try_io(|fd| sys::read(fd.as_fd(), buffer.initialize_unfilled())) {
                Ok(Ok(n)) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = ready.try_io(|fd| sys::write(fd.as_fd(), bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        sys::shutdown_write(self.as_fd());
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

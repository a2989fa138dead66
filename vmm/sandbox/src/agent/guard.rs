//! What a guest's agent sends, looked at before it is believed: answers, each to a call that waits
//! for one, and none longer than any that an agent has to give. Everything else ends the
//! connection, so that a guest which lies costs its callers neither memory nor time.

use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ttrpc::proto::{MESSAGE_TYPE_RESPONSE, MessageHeader};

/// Bytes of a frame's header.
const HEADER: usize = 10;

/// Most bytes of an answer. Decoded, one of many empty records takes some tens of times as much.
pub(super) const ANSWER_MOST: u32 = 256 << 10;

/// What no agent sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lie {
    /// A frame of another kind.
    #[error("{GUEST}sent something that is no answer")]
    NoAnswer,
    /// An answer to no call, or a second one.
    #[error("{GUEST}answered what nobody had asked")]
    Unasked,
    /// An answer that is too long.
    #[error("{GUEST}announced an answer of {0} bytes, and at most {ANSWER_MOST} are taken")]
    Long(u32),
}

/// How the sentences on lies begin.
const GUEST: &str = "the guest's agent ";

/// Whether the text of a broken connection is a sentence on a lie.
pub(super) fn is_lie(text: &str) -> bool {
    text.starts_with(GUEST)
}

/// Where one direction of a connection stands.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER],
    /// Bytes of the header that came.
    came: usize,
    /// Bytes of the payload that have not come.
    left: usize,
}

impl Frames {
    /// Passes over bytes, and tells of each header that ends in them.
    fn pass<E>(
        &mut self,
        mut bytes: &[u8],
        mut tell: impl FnMut(&MessageHeader) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let count = bytes.len().min(self.left);
                self.left -= count;
                bytes = &bytes[count..];
                continue;
            }
            let count = bytes.len().min(HEADER - self.came);
            self.header[self.came..][..count].copy_from_slice(&bytes[..count]);
            self.came += count;
            bytes = &bytes[count..];
            if self.came == HEADER {
                let header = MessageHeader::from(self.header);
                tell(&header)?;
                self.came = 0;
                self.left = usize::try_from(header.length).expect("usize has at least 32 bits");
            }
        }
        Ok(())
    }
}

/// A stream to an agent.
#[derive(Debug)]
pub(super) struct Guard<S> {
    stream: S,
    asked: Frames,
    answered: Frames,
    /// Calls without an answer. A call that was given up is answered late, or never.
    waiting: HashSet<u32>,
    /// Set with the first lie.
    lied: Arc<AtomicBool>,
    /// Set when nothing more comes.
    gone: Arc<AtomicBool>,
}

impl<S> Guard<S> {
    /// `lied` is set with the first lie, `gone` when nothing more comes.
    pub(super) fn new(stream: S, lied: Arc<AtomicBool>, gone: Arc<AtomicBool>) -> Self {
        let (asked, answered) = (Frames::default(), Frames::default());
        Self { stream, asked, answered, waiting: HashSet::new(), lied, gone }
    }
}

/// A connection that ends by a failed write is not read any more.
impl<S> Drop for Guard<S> {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let room = buffer.remaining();
        let read = ready!(Pin::new(&mut this.stream).poll_read(context, buffer));
        if read.is_err() || room > 0 && buffer.filled().len() == before {
            this.gone.store(true, Ordering::Relaxed);
        }
        read?;
        let waiting = &mut this.waiting;
        let looked = this.answered.pass(&buffer.filled()[before..], |header| match header {
            _ if header.type_ != MESSAGE_TYPE_RESPONSE => Err(Lie::NoAnswer),
            _ if !waiting.remove(&header.stream_id) => Err(Lie::Unasked),
            _ if header.length > ANSWER_MOST => Err(Lie::Long(header.length)),
            _ => Ok(()),
        });
        if looked.is_err() {
            this.lied.store(true, Ordering::Relaxed);
            this.gone.store(true, Ordering::Relaxed);
            buffer.set_filled(before);
        }
        Poll::Ready(looked.map_err(io::Error::other))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        let waiting = &mut this.waiting;
        let Ok(()) = this.asked.pass(&bytes[..count], |header| {
            waiting.insert(header.stream_id);
            Ok::<_, std::convert::Infallible>(())
        });
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

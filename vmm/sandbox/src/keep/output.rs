//! A container's output: into the log, and from a bounded ring to whoever is attached.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;

use super::ring::{Piece, Ring};
use crate::wire::frames::{self, HEADER, Source};

/// Bytes of the latest output that are held for attachments.
const HELD: usize = 256 << 10;

/// Bytes of output that are moved at once.
const CHUNK: usize = 16 << 10;

/// How long output waits for the reader that sets its pace while that reads nothing.
const PATIENCE: Duration = Duration::from_secs(1);

const WHOLE: &str = "nobody panics while output is added";

/// Takes what a container says, as it says it; an empty piece is the end of that stream, until the
/// next start. It must not wait.
pub type Sink = Box<dyn FnMut(Source, &[u8]) + Send>;

/// The output of a sandbox, over all its starts.
pub struct Output {
    ring: Mutex<Ring>,
    log: Mutex<Sink>,
    /// That there is more, and whether there will ever be more.
    news: watch::Sender<News>,
    /// How far the reader that sets the pace has read; none when nobody is waited for.
    pace: watch::Sender<Option<u64>>,
    /// The client that the sandbox was started for, if it has the container's streams.
    client: Mutex<Client>,
    /// How many of its streams are still read.
    readers: AtomicUsize,
    /// Nothing more is written to that client.
    left: watch::Sender<bool>,
}

/// Where a client reads standard output and standard error. Nothing is lost on the way: output is
/// read no faster than this client reads it.
#[derive(Default)]
pub struct Client {
    /// Standard output, or the terminal.
    pub stdout: Option<OwnedWriteHalf>,
    /// Standard error.
    pub stderr: Option<OwnedWriteHalf>,
}

impl Client {
    fn stream(&mut self, source: Source) -> &mut Option<OwnedWriteHalf> {
        match source {
            Source::Output => &mut self.stdout,
            Source::Error => &mut self.stderr,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct News {
    end: u64,
    over: bool,
}

impl Output {
    /// Nothing said yet.
    #[must_use]
    pub fn new(log: Sink) -> Arc<Self> {
        Self::with_client(log, Client::default())
    }

    /// The same with a client that hears all of it.
    #[must_use]
    pub fn with_client(log: Sink, client: Client) -> Arc<Self> {
        let news = watch::Sender::new(News { end: 0, over: false });
        let (ring, left) = (Mutex::new(Ring::new(HELD)), watch::Sender::new(false));
        let readers = usize::from(client.stdout.is_some()) + usize::from(client.stderr.is_some());
        let (client, readers) = (Mutex::new(client), AtomicUsize::new(readers));
        let pace = watch::Sender::new(None);
        Arc::new(Self { ring, log: Mutex::new(log), news, pace, client, readers, left })
    }

    /// Whether a client may still read.
    #[must_use]
    pub fn has_client(&self) -> bool {
        !*self.left.borrow() && self.readers.load(Ordering::Relaxed) > 0
    }

    /// Waits for the client no longer.
    pub fn leave_client(&self) {
        self.left.send_replace(true);
        *self.client() = Client::default();
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().expect(WHOLE)
    }

    /// Writes what was said to the client, which may take as long as it likes, unless it has left.
    async fn tell_client(&self, source: Source, bytes: &[u8]) {
        let Some(mut stream) = self.client().stream(source).take() else { return };
        let mut left = self.left.subscribe();
        let written = tokio::select! {
            biased;
            _ = left.wait_for(|left| *left) => return,
            written = stream.write_all(bytes) => written,
        };
        // One that reads no more has left: the container goes on.
        if written.is_err() {
            self.readers.fetch_sub(1, Ordering::Relaxed);
        } else if !*self.left.borrow() {
            *self.client().stream(source) = Some(stream);
        }
    }

    /// Adds what was said.
    pub fn push(&self, source: Source, bytes: &[u8]) {
        (self.log.lock().expect(WHOLE))(source, bytes);
        let mut ring = self.ring();
        ring.push(source, bytes);
        let end = ring.end();
        drop(ring);
        self.news.send_modify(|news| news.end = news.end.max(end));
    }

    /// Nothing will ever be said any more: attachments end once they have read all.
    pub fn finish(&self) {
        self.leave_client();
        self.news.send_modify(|news| news.over = true);
    }

    /// Position behind the newest byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.news.borrow().end
    }

    /// Whether somebody sets the pace who has not read all.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.pace.borrow().is_some_and(|read| read < self.end())
    }

    /// Waits until the reader that sets the pace would lose nothing by one more chunk of standard
    /// output and one of standard error, which come by themselves. It is waited
    /// for as long as it reads; one that reads nothing for [`PATIENCE`] sets no pace until it does.
    async fn keep_pace(&self) {
        let mut pace = self.pace.subscribe();
        loop {
            let Some(read) = *pace.borrow_and_update() else { return };
            if self.ring().has_room_for(2, CHUNK, read) {
                return;
            }
            if tokio::time::timeout(PATIENCE, pace.changed()).await.is_err() {
                self.pace.send_if_modified(|pace| {
                    let stands = *pace == Some(read);
                    if stands {
                        *pace = None;
                    }
                    stands
                });
            }
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().expect(WHOLE)
    }

    /// Reads a stream of the container to its end.
    ///
    /// # Errors
    /// The descriptor cannot be used. The end of the machine is the end of the stream.
    pub async fn pump(
        self: Arc<Self>,
        mut from: impl tokio::io::AsyncRead + Unpin,
        source: Source,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer).await {
                Ok(0) | Err(_) => {
                    (self.log.lock().expect(WHOLE))(source, &[]);
                    return Ok(());
                }
                Ok(count) => {
                    self.push(source, &buffer[..count]);
                    self.tell_client(source, &buffer[..count]).await;
                    self.keep_pace().await;
                }
            }
            // A flood must not keep the keeper from its clients.
            tokio::task::yield_now().await;
        }
    }

    /// Sends frames to an attachment, from the oldest that is held, until nothing more will be said
    /// or its reader is gone.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn serve(&self, to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> io::Result<()> {
        let position = self.ring().oldest();
        self.send(to, position, |_| {}).await
    }

    /// The same from the first byte, for one reader that sets the pace: while it reads it loses
    /// nothing.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn serve_all(&self, to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> io::Result<()> {
        let pace = Pace(&self.pace);
        pace.0.send_replace(Some(0));
        self.send(to, 0, |position| {
            pace.0.send_replace(Some(position));
        })
        .await
    }

    async fn send(
        &self,
        to: &mut (impl tokio::io::AsyncWrite + Unpin),
        mut position: u64,
        told: impl Fn(u64),
    ) -> io::Result<()> {
        let mut news = self.news.subscribe();
        let mut chunk = vec![0; HEADER + CHUNK];
        loop {
            // Before it is looked at, so that nothing is missed in between.
            let over = news.borrow_and_update().over;
            loop {
                let piece = self.ring().read(&mut position, &mut chunk[HEADER..]);
                match piece {
                    None => break,
                    Some(Piece::Lost(count)) => to.write_all(&frames::lost(count)).await?,
                    Some(Piece::Bytes(source, count)) => {
                        chunk[..HEADER].copy_from_slice(&frames::header(source, count));
                        to.write_all(&chunk[..HEADER + count]).await?;
                    }
                }
                told(position);
            }
            if over || news.changed().await.is_err() {
                return to.shutdown().await;
            }
        }
    }
}

/// Nobody sets the pace once its reader is not served any more.
struct Pace<'a>(&'a watch::Sender<Option<u64>>);

impl Drop for Pace<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

/// A blocking stream, for the runtime.
///
/// # Errors
/// It cannot be made non-blocking or registered.
pub fn registered(stream: UnixStream) -> io::Result<tokio::net::UnixStream> {
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frames::{Decoder, Frame};

    /// Reads frames until `done`, or to the end.
    async fn frames(from: &mut tokio::net::UnixStream, mut done: impl FnMut(&Frame) -> bool) -> Vec<Frame> {
        let (mut decoder, mut came, mut buffer) = (Decoder::default(), Vec::new(), [0; 4096]);
        loop {
            let count = from.read(&mut buffer).await.unwrap();
            if count == 0 {
                return came;
            }
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.take().unwrap() {
                let last = done(&frame);
                came.push(frame);
                if last {
                    return came;
                }
            }
        }
    }

    fn all_of(frames: &[Frame], wanted: Source) -> (u64, Vec<u8>) {
        let (mut lost, mut all) = (0, Vec::new());
        for frame in frames {
            match frame {
                Frame::Bytes(source, bytes) if *source == wanted => all.extend_from_slice(bytes),
                Frame::Bytes(..) => {}
                Frame::Lost(count) => lost += count,
            }
        }
        (lost, all)
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_loses_alone_and_holds_nobody_up() {
        let said = Arc::new(Mutex::new(0_usize));
        let counted = Arc::clone(&said);
        let output = Output::new(Box::new(move |_, bytes| *counted.lock().unwrap() += bytes.len()));
        let attach = || {
            let (near, far) = tokio::net::UnixStream::pair().unwrap();
            let (output, mut far) = (Arc::clone(&output), far);
            tokio::spawn(async move { output.serve(&mut far).await });
            near
        };
        output.push(Source::Error, b"before");
        let (mut slow, mut quick) = (attach(), attach());
        let (mut guest, theirs) = tokio::net::UnixStream::pair().unwrap();
        let pump = tokio::spawn(Arc::clone(&output).pump(theirs, Source::Output));
        let total = 16 * HELD;
        let writes = async {
            for index in 0..total / 1024 {
                let [byte, ..] = index.to_le_bytes();
                guest.write_all(&[byte; 1024]).await.unwrap();
            }
            drop(guest);
            pump.await.unwrap().unwrap();
            output.finish();
        };
        // It reads all the time: together with what it lost, it accounts for every byte.
        let (came, ()) = tokio::join!(frames(&mut quick, |_| false), writes);
        let whole = u64::try_from(total + 6).unwrap();
        let account = |came: &[Frame]| {
            let (lost, out) = all_of(came, Source::Output);
            let (_, error) = all_of(came, Source::Error);
            (lost, lost + u64::try_from(out.len() + error.len()).unwrap())
        };
        assert_eq!(account(&came).1, whole);
        assert_eq!(came[0], Frame::Bytes(Source::Error, b"before".to_vec()));
        // The other reads only now.
        let late = frames(&mut slow, |_| false).await;
        let (lost, accounted) = account(&late);
        assert!(lost > 0 && accounted == whole, "{lost} {accounted} {whole}");
        assert_eq!(*said.lock().unwrap(), total + 6);
        // A new one gets the latest.
        let mut late = attach();
        let (lost, out) = all_of(&frames(&mut late, |_| false).await, Source::Output);
        assert_eq!((lost, out.len()), (0, HELD));
    }

    #[tokio::test]
    async fn the_first_client_holds_up_the_container_and_loses_nothing_until_it_leaves() {
        let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let (_reads, writes) = near.into_split();
        let client = Client { stdout: Some(writes), stderr: None };
        let output = Output::with_client(Box::new(|_, _| {}), client);
        let (mut guest, theirs) = tokio::net::UnixStream::pair().unwrap();
        let pump = tokio::spawn(Arc::clone(&output).pump(theirs, Source::Output));
        let total = 16 * HELD;
        let bytes: Vec<u8> = (0..total).map(|index| index.to_le_bytes()[1]).collect();
        let expected = bytes.clone();
        let said = tokio::spawn(async move {
            guest.write_all(&bytes).await.unwrap();
            guest
        });
        // It does not read, so the container waits.
        let still = tokio::time::timeout(std::time::Duration::from_millis(200), async {
            while !said.is_finished() {
                tokio::task::yield_now().await;
            }
        });
        assert!(still.await.is_err() && output.has_client());
        let mut all = vec![0; total];
        far.read_exact(&mut all).await.unwrap();
        assert!(all == expected);
        let mut guest = said.await.unwrap();
        // It leaves, in the middle of a write: the container goes on.
        let more = tokio::spawn(async move {
            guest.write_all(&vec![1; total]).await.unwrap();
            drop(guest);
        });
        tokio::task::yield_now().await;
        drop(far);
        more.await.unwrap();
        pump.await.unwrap().unwrap();
        assert!(!output.has_client());
    }

    /// Both streams at once, in pieces that are small on one of them.
    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_of_two_streams_loses_nothing() {
        for piece in [CHUNK, 3] {
            let output = Output::new(Box::new(|_, _| {}));
            let (mut near, mut far) = tokio::net::UnixStream::pair().unwrap();
            let serving = {
                let output = Arc::clone(&output);
                tokio::spawn(async move { output.serve_all(&mut far).await })
            };
            tokio::task::yield_now().await;
            let total = if piece == CHUNK { 8 * HELD } else { piece * 8 * 4096 };
            let mut pumps = tokio::task::JoinSet::new();
            for source in [Source::Output, Source::Error] {
                let (mut guest, theirs) = tokio::io::duplex(piece);
                pumps.spawn(Arc::clone(&output).pump(theirs, source));
                let bytes = vec![7; piece];
                pumps.spawn(async move {
                    for _ in 0..total / piece {
                        guest.write_all(&bytes).await?;
                    }
                    Ok(())
                });
            }
            let ends = {
                let output = Arc::clone(&output);
                async move {
                    while let Some(done) = pumps.join_next().await {
                        done.unwrap().unwrap();
                    }
                    output.finish();
                }
            };
            let (came, ()) = tokio::join!(frames(&mut near, |_| false), ends);
            for source in [Source::Output, Source::Error] {
                let (lost, all) = all_of(&came, source);
                assert_eq!((lost, all.len()), (0, total), "pieces of {piece}");
            }
            serving.await.unwrap().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_reader_that_sets_the_pace_loses_nothing_while_it_reads() {
        let output = Output::new(Box::new(|_, _| {}));
        let (mut near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let serving = {
            let output = Arc::clone(&output);
            tokio::spawn(async move { output.serve_all(&mut far).await })
        };
        tokio::task::yield_now().await;
        let total = 16 * HELD;
        let source = tokio::io::repeat(7).take(u64::try_from(total).unwrap());
        let pump = tokio::spawn(Arc::clone(&output).pump(source, Source::Output));
        // It reads, with a wait that is shorter than what the output grants it.
        let (mut seen, mut decoder, mut buffer) = (0, Decoder::default(), vec![0; HELD]);
        while seen < total / 2 {
            tokio::time::sleep(PATIENCE / 2).await;
            let count = near.read(&mut buffer).await.unwrap();
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.take().unwrap() {
                let Frame::Bytes(Source::Output, bytes) = frame else { panic!("{frame:?}") };
                seen += bytes.len();
            }
            assert!(!pump.is_finished());
        }
        // It reads nothing any more: the output goes on without it, and it is told what it lost.
        pump.await.unwrap().unwrap();
        output.finish();
        let (lost, rest) = all_of(&frames(&mut near, |_| false).await, Source::Output);
        assert!(lost > 0 && seen + rest.len() + usize::try_from(lost).unwrap() == total, "{lost}");
        serving.await.unwrap().unwrap();
        assert_eq!(*output.pace.borrow(), None);
    }
}

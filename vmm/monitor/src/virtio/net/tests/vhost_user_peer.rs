//! A peer of vhost-user that a test plays, request by request, and has break the protocol.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sys::receive;
use crate::virtio::net::spec::feature;
use crate::virtio::spec::feature as ring;

/// That there are features of the protocol.
pub(crate) const PROTOCOL: u64 = 1 << 30;
/// As passt has it: no indirect descriptors, no event indices, no offloads.
pub(crate) const FEW: u64 = ring::VERSION_1 | feature::MRG_RXBUF | PROTOCOL;

/// What a played peer says to a request.
pub(crate) enum Said {
    /// What is right.
    Right,
    /// These bytes behind a right header.
    Words(Vec<u8>),
    /// A message with another number.
    Other,
    /// Nothing, and the end.
    End,
    /// Nothing.
    Silence,
    /// A byte of an answer now and then.
    Drops,
    /// What is right, but late.
    Late(Duration),
    /// Nothing, and that nothing more comes: the other direction stays open.
    Mute,
}

/// Plays a peer until the connection ends: `say` is asked for each request, by number.
pub(crate) fn play(say: impl Fn(u32) -> Said + Send + 'static) -> (UnixStream, JoinHandle<()>) {
    let (near, thread, _) = play_with_files(say);
    (near, thread)
}

/// The descriptors that came with requests, and the numbers of those.
pub(crate) type Came = Arc<Mutex<Vec<(u32, OwnedFd)>>>;

/// The same, with the descriptors that come.
pub(crate) fn play_with_files(
    say: impl Fn(u32) -> Said + Send + 'static,
) -> (UnixStream, JoinHandle<()>, Came) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let came = Came::default();
    let files = Arc::clone(&came);
    let thread = std::thread::spawn(move || {
        loop {
            let (mut head, mut arrived) = ([0; 12], Vec::new());
            match receive(far.as_fd(), &mut head, &mut arrived, 8) {
                Ok(message) if message.bytes == 0 => return,
                Ok(message) => far.read_exact(&mut head[message.bytes..]).unwrap(),
                Err(_) => return,
            }
            let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
            files.lock().unwrap().extend(arrived.into_iter().map(|file| (word(0), file)));
            let mut body = vec![0; word(8) as usize];
            far.read_exact(&mut body).unwrap();
            let asks = matches!(word(0), 1 | 11 | 15 | 17);
            let right = match word(0) {
                1 => Some((FEW | feature::MQ).to_ne_bytes().to_vec()),
                11 => Some(body.clone()),
                // MQ and REPLY_ACK.
                15 => Some(9u64.to_ne_bytes().to_vec()),
                17 => Some(8u64.to_ne_bytes().to_vec()),
                _ => (word(4) & 8 != 0).then(|| vec![0; 8]),
            };
            let (number, words) = match (say(word(0)), right) {
                (Said::End, _) => return,
                (Said::Right, Some(right)) => (word(0), right),
                (Said::Late(time), Some(right)) => {
                    std::thread::sleep(time);
                    (word(0), right)
                }
                (Said::Mute, _) => {
                    far.shutdown(std::net::Shutdown::Write).unwrap();
                    assert!(far.peek_end(), "only the end comes");
                    continue;
                }
                (Said::Words(words), Some(_)) => (word(0), words),
                (Said::Other, Some(right)) => (word(0) + 1, right),
                (Said::Drops, Some(_)) => {
                    while far.write_all(&[1]).is_ok() {
                        std::thread::sleep(Duration::from_millis(500));
                    }
                    return;
                }
                (
                    Said::Right | Said::Words(_) | Said::Other | Said::Drops | Said::Late(_) | Said::Silence,
                    _,
                ) => {
                    assert!(!asks || far.peek_end(), "only the end comes");
                    continue;
                }
            };
            let len = u32::try_from(words.len()).unwrap();
            let head = [number, 1 | 4, len].map(u32::to_ne_bytes).concat();
            // Whoever does not like what it read is gone.
            let _ = far.write_all(&[head, words].concat());
        }
    });
    (near, thread, came)
}

/// Waits for the end of a connection.
trait PeekEnd {
    fn peek_end(&mut self) -> bool;
}

impl PeekEnd for UnixStream {
    fn peek_end(&mut self) -> bool {
        !matches!(self.read(&mut [0; 1]), Ok(1..))
    }
}

//! The device through real queues, with real sockets on the host's side.

mod flow;
mod guest;
mod hostile;
mod joins;
mod limits;
mod restored;
mod scale;
mod ways;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use self::guest::Guest;
use super::connection::Key;
use super::{Vsock, VsockControl};
use crate::config::VsockConfig;

/// A device with a door in a directory of its own.
fn with_door(directory: &Path) -> ((Vsock, VsockControl), PathBuf) {
    let path = directory.join("v");
    let config = VsockConfig { unix_socket: Some(path.clone()), ..VsockConfig::default() };
    (Vsock::new(&config, None).unwrap(), path)
}

fn without_door() -> (Vsock, VsockControl) {
    Vsock::new(&VsockConfig::default(), None).unwrap()
}

/// Asks for a connection; the answer is in the channel once the guest was pumped.
fn connect(control: &VsockControl, port: u32) -> mpsc::Receiver<io::Result<UnixStream>> {
    let (sender, receiver) = mpsc::channel();
    control.connect(port, Box::new(move |result| drop(sender.send(result))));
    receiver
}

/// A connection the host made through the handle, and its socket in the guest.
fn joined(guest: &mut Guest, port: u32) -> (UnixStream, Key) {
    guest.listening.insert(port);
    let before = guest.open();
    let answer = connect(&guest.control, port);
    guest.pump();
    let stream = answer.try_recv().expect("an answer").expect("a stream");
    let key = *guest.open().iter().find(|key| !before.contains(key)).expect("a new socket");
    (stream, key)
}

/// A stream of bytes that says where a piece is missing.
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            // splitmix64: every word differs from every other.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..word.len()]);
        }
    }

    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Self(seed).fill(&mut bytes);
        bytes
    }
}

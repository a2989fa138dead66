//! One request: `fuse_in_header` and what follows, room for the answer (virtio 1.2, 5.11.6.1).

use nelly_disk::WriteBuffer;

use super::FileServer;
use crate::memory::Memory;
use crate::sys::{at_most, fits};
use crate::virtio::device::DeviceFault;
use crate::virtio::queue::Chain;

/// Bytes of `fuse_in_header`.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;
/// Where the operation's number is in `fuse_in_header`.
const OPCODE: std::ops::Range<usize> = 4..8;

/// FORGET: no answer.
const FORGET: u32 = 2;
/// SETLK: a lock, or an error where it is taken.
const SETLK: u32 = 32;
/// SETLKW: a lock as soon as it is to be had.
const SETLKW: u32 = 33;
/// INTERRUPT: no answer of its own.
const INTERRUPT: u32 = 36;
/// BATCH_FORGET: no answer.
const BATCH_FORGET: u32 = 42;

/// EAGAIN of the guest, which is Linux, as an answer has it.
const LOCKED: i32 = -11;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// So many bytes were written.
    With(u32),
    /// It waits for a lock that another one has, and nothing was done.
    Later,
}

/// Has the server answer a chain. Only one that has no whole header, or no room for that of its
/// answer, is a fault.
pub(super) fn answer(
    server: &dyn FileServer,
    memory: &Memory,
    chain: &Chain,
) -> Result<Answered, DeviceFault> {
    let mut header = [0; IN_HEADER];
    let mut reader = chain.reader(memory);
    reader.clone().read_exact(&mut header)?;
    let opcode = word(&header, OPCODE);
    let room: usize = fits(chain.writable_len(), "usize has at least 32 bits on every host of Nelly");
    let answers = ![FORGET, BATCH_FORGET, INTERRUPT].contains(&opcode);
    if room < OUT_HEADER && (answers || room > 0) {
        return Err(DeviceFault::Protocol("a file system request without room for its answer"));
    }
    let mut writer = chain.writer(memory);
    let waits = opcode == SETLKW;
    let (mut written, mut locked) = (0, false);
    // Nothing of either is passed over by these: what was written, the server says.
    let handled = reader.transfer(chain.readable_len(), |request| {
        let request: &dyn WriteBuffer = if waits { &AtOnce(&*request) } else { &*request };
        if room == 0 {
            written = server.handle(request, &mut [0u8; 0]);
            return Ok(0);
        }
        let replied = writer.transfer(chain.writable_len(), |reply| {
            written = server.handle(request, reply);
            locked = waits && written == OUT_HEADER && is_locked(&*reply);
            Ok(0)
        });
        replied.map_err(std::io::Error::other)?
    });
    // Its ranges were checked, so this is a fault of nobody.
    handled??;
    if locked {
        return Ok(Answered::Later);
    }
    Ok(Answered::With(fits(at_most(written, room), "no chain holds 2^32 bytes")))
}

/// Whether an answer says that somebody else has the lock.
fn is_locked(reply: &dyn WriteBuffer) -> bool {
    let mut header = [0; OUT_HEADER];
    reply.copy_out(0, &mut header);
    word(&header, 4..8).cast_signed() == LOCKED
}

fn word<const N: usize>(bytes: &[u8; N], at: std::ops::Range<usize>) -> u32 {
    u32::from_le_bytes(bytes[at].try_into().expect("four bytes"))
}

/// A wait for a lock, seen by the server as a single try.
struct AtOnce<'a>(&'a dyn WriteBuffer);

impl WriteBuffer for AtOnce<'_> {
    fn size(&self) -> usize {
        self.0.size()
    }

    fn write_file(
        &self,
        range: std::ops::Range<usize>,
        file: std::os::fd::BorrowedFd<'_>,
        offset: u64,
    ) -> std::io::Result<usize> {
        // Of a lock, nothing goes into a file.
        self.0.write_file(range, file, offset)
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        self.0.copy_out(at, bytes);
        let opcode = SETLK.to_le_bytes();
        for (place, byte) in (at..).zip(bytes) {
            if OPCODE.contains(&place) {
                *byte = opcode[place - OPCODE.start];
            }
        }
    }
}

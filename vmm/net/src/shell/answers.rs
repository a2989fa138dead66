//! Streams between the guest and its resolver, and between that and those of the host.

use rustix::io::Errno;

use super::Shell;
use super::socket::receive;
use crate::core::{FlowId, Time};

/// How often a socket is read before others have their turn.
const TURN: usize = 8;

impl Shell {
    /// Bytes for the guest that came from no socket.
    pub(super) fn feed(&mut self, id: FlowId, bytes: &[u8]) {
        let (used, budget) = (self.ring_bytes, self.ring_budget);
        let Some(socket) = self.socket(id) else { return };
        let (before, room) = (socket.ring.capacity(), socket.ring.room());
        if room < bytes.len() {
            let larger = (before + bytes.len() - room).next_power_of_two();
            if used + larger - before > budget {
                return self.net.broken(id);
            }
            socket.ring.resize(larger);
        }
        let mut rest = bytes;
        for part in &mut socket.ring.free() {
            let len = part.len().min(rest.len());
            part[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
        }
        socket.ring.fill(bytes.len());
        let gained = socket.ring.capacity() - before;
        self.ring_bytes += gained;
    }

    /// A resolver of the host answers in a stream.
    pub(super) fn read_answer(&mut self, now: Time, id: FlowId) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..TURN {
            let Some(socket) = self.socket(id) else { break };
            let Some(file) = &socket.file else { break };
            match receive(file, &mut buffer) {
                Ok(0) => {
                    socket.readable = false;
                    self.net.ended(now, id);
                }
                Ok(len) => self.net.answer_part(now, id, &buffer[..len]),
                Err(Errno::AGAIN) => {
                    socket.readable = false;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    socket.readable = false;
                    self.net.broken(id);
                    break;
                }
            }
            // With its answer, a question's flow ends.
            self.act(now);
        }
        self.buffer = buffer;
        if self.socket(id).is_some_and(|socket| socket.readable) {
            self.has_work(id);
        }
    }
}

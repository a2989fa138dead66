//! Streams to hosts of secrets: the process that has the secrets is given the connected socket, and
//! a stream to that process takes its place.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::Shell;
use super::socket::Kind;
use crate::config::Handover;
use crate::core::FlowId;

impl Shell {
    /// Takes the message socket of the process that has the secrets.
    pub fn keep_secrets(&mut self, secrets: OwnedFd) {
        self.secrets = Some(secrets);
    }

    /// Hands the socket of a flow over. If that cannot be, the flow ends: nothing is said to the
    /// host then.
    pub(super) fn hand_over(&mut self, flow: FlowId, name: String, from: SocketAddr, to: SocketAddr) {
        let about = Handover { name, port: to.port(), from: from.to_string(), to: to.to_string() };
        if self.handed_over(flow, &about).is_err() {
            self.net.broken(flow);
        }
    }

    fn handed_over(&mut self, flow: FlowId, about: &Handover) -> Result<(), Errno> {
        let text = serde_json::to_vec(about).map_err(|_| Errno::INVAL)?;
        let (ours, theirs) = crate::sys::stream_pair()?;
        let token = u64::from(flow.generation) << 32 | u64::from(flow.slot);
        let Some(socket) = self.sockets.get_mut(crate::number::index(flow.slot)).and_then(Option::as_mut)
        else {
            return Err(Errno::NOTCONN);
        };
        if socket.id != flow || !matches!(socket.kind, Kind::Stream) {
            return Err(Errno::NOTCONN);
        }
        let host = socket.file.take().ok_or(Errno::NOTCONN)?;
        // The other process has it open still, and its events are none of ours.
        self.poller.remove(&host).map_err(|_| Errno::NOTCONN)?;
        (socket.readable, socket.ended, socket.urgent) = (false, false, false);
        socket.file = Some(ours);
        let secrets = self.secrets.as_ref().ok_or(Errno::NOTCONN)?;
        let files = [theirs.as_fd(), host.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut goes = SendAncillaryBuffer::new(&mut space);
        if !goes.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(Errno::INVAL);
        }
        let flags = crate::sys::QUIET | SendFlags::DONTWAIT;
        sendmsg(secrets, &[IoSlice::new(&text)], &mut goes, flags)?;
        if let Some(file) = &socket.file {
            self.poller.add(file, token).map_err(|_| Errno::NOMEM)?;
        }
        Ok(())
    }
}

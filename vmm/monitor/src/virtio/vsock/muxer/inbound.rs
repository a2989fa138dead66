//! Packets of the guest.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;

use super::Muxer;
use super::slot::{Caller, Host, Slot, window};
use crate::memory::Memory;
use crate::sys::{fits, unix};
use crate::virtio::queue::{Chain, QueueFault, Reader};
use crate::virtio::vsock::PowerWord;
use crate::virtio::vsock::connection::{Connection, Key, Received};
use crate::virtio::vsock::control;
use crate::virtio::vsock::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use crate::virtio::vsock::table::Handle;

impl Muxer {
    /// Takes in one packet. The error is that of guest memory; everything else a guest can do wrong
    /// is answered in the protocol.
    pub(in crate::virtio::vsock) fn receive(
        &mut self,
        chain: &Chain,
        memory: &Memory,
    ) -> Result<(), QueueFault> {
        let mut reader = chain.reader(memory);
        let mut bytes = [0u8; HEADER_LEN];
        if reader.read(&mut bytes)? < HEADER_LEN {
            self.fault();
            return Ok(());
        }
        let header = Header::decode(&bytes);
        if header.src_cid != self.cid {
            // It claims to be somebody else; there is nobody to answer.
            self.fault();
            return Ok(());
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.answer_reset(&header);
            return Ok(());
        }
        let key = Key { guest: header.src_port, host: header.dst_port };
        let short = header.op == Op::Rw.raw() && header.len > reader.left();
        match self.table.find(key) {
            None if header.op == Op::Request.raw() => self.dialled(key, &header),
            None => self.answer_reset(&header),
            Some(handle) if short => {
                self.fault();
                self.abort(handle, &header);
            }
            Some(handle) => self.hear_known(handle, &header, &mut reader)?,
        }
        Ok(())
    }

    fn hear_known(
        &mut self,
        handle: Handle,
        header: &Header,
        reader: &mut Reader<'_>,
    ) -> Result<(), QueueFault> {
        let Some(slot) = self.table.get_mut(handle) else { return Ok(()) };
        match slot.protocol.receive(header) {
            Received::Nothing | Received::Discard => {}
            Received::Opened => self.opened(handle, header),
            Received::Data(len) => self.deliver(handle, header, reader, len)?,
            Received::HalfClosed => {
                if slot.protocol.guest_refuses()
                    && let Host::Stream(stream) = &slot.host
                {
                    slot.readable = false;
                    let _ = stream.shutdown(Shutdown::Read);
                }
                slot.pass_on_end();
            }
            Received::Finished => self.abort(handle, header),
            Received::Reset => self.retire(handle, io::ErrorKind::ConnectionRefused),
            Received::Fault(_) => {
                self.fault();
                self.abort(handle, header);
            }
        }
        self.touch(handle);
        Ok(())
    }

    fn deliver(
        &mut self,
        handle: Handle,
        header: &Header,
        reader: &mut Reader<'_>,
        len: u32,
    ) -> Result<(), QueueFault> {
        let Some(slot) = self.table.get_mut(handle) else { return Ok(()) };
        slot.silent = 0;
        if let Host::Power = slot.host {
            slot.protocol.forwarded(len);
            return self.power_word(handle, header, reader, len);
        }
        let mut left = len;
        if let Host::Stream(stream) = &slot.host
            && slot.backlog.is_empty()
            && len > 0
        {
            match reader.send_to(stream.as_fd(), len)? {
                Ok(count) => {
                    let count = u32::try_from(count).expect("at most what was to be sent");
                    slot.protocol.forwarded(count);
                    left -= count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    slot.refuse();
                    return Ok(());
                }
            }
        }
        slot.backlog.append(fits(left, "usize has at least 32 bits on every host of Nelly"), |piece| {
            reader.read_exact(piece)
        })
    }

    fn power_word(
        &mut self,
        handle: Handle,
        header: &Header,
        reader: &mut Reader<'_>,
        len: u32,
    ) -> Result<(), QueueFault> {
        if len == 0 {
            return Ok(());
        }
        let mut byte = [0u8; 1];
        reader.read_exact(&mut byte)?;
        let word = match byte[0] {
            b'o' => PowerWord::Off,
            b'r' => PowerWord::Reboot,
            b'p' => PowerWord::Panic,
            _ => {
                self.fault();
                self.abort(handle, header);
                return Ok(());
            }
        };
        // The connection stays: the guest waits for its close in vain while the machine ends.
        if let Some(power) = &self.power {
            (power.sink)(word);
        }
        Ok(())
    }

    /// The guest asks for a connection.
    fn dialled(&mut self, key: Key, header: &Header) {
        // A listener asked for before the guest was told of the port may still be in the inbox.
        self.requests();
        let full = self.table.is_full() || self.dialled >= self.dialled_max;
        let host = if full { None } else { self.answer_dial(key) };
        let Some(host) = host else { return self.answer_reset(header) };
        let protocol = Connection::accept(window(self.table.len()), header);
        let slot = Slot { dialled: true, ..Slot::new(Some(key), protocol, host) };
        match self.table.insert(slot) {
            Ok(handle) => {
                self.dialled += 1;
                self.table.bind(key, handle);
                self.touch(handle);
            }
            Err(_) => self.answer_reset(header),
        }
    }

    fn answer_dial(&mut self, key: Key) -> Option<Host> {
        if let Some(power) = self.power.as_mut().filter(|power| power.port == key.host) {
            return (!std::mem::replace(&mut power.taken, true)).then_some(Host::Power);
        }
        if self.listeners.contains(key.host) {
            return self.listeners.hand_over(key).map(Host::Stream);
        }
        self.door.as_ref()?.dial(key.host).ok().map(Host::Stream)
    }

    /// The guest accepted what the host dialled.
    fn opened(&mut self, handle: Handle, header: &Header) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        let Host::Ringing(ringing) = std::mem::replace(&mut slot.host, Host::Gone) else { return };
        match ringing.caller {
            Caller::Client(stream) => {
                let line = format!("OK {}\n", header.dst_port);
                // Nothing was sent on this stream before, so it has room for a line. A client that
                // closed its reading half gets none, and may still have something to say.
                match unix::send_vectored(stream.as_fd(), &[io::IoSlice::new(line.as_bytes())]) {
                    Ok(count) if count == line.len() => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => slot.refuse(),
                    _ => return self.abort(handle, header),
                }
                slot.host = Host::Stream(stream);
            }
            Caller::Joins(stream, reply) => {
                slot.host = Host::Stream(stream);
                reply.send(Ok(()));
            }
            Caller::Handle(reply) => match control::pair() {
                Ok((near, far)) => {
                    slot.host = Host::Stream(near);
                    reply.send(Ok(far));
                }
                Err(error) => {
                    reply.send(Err(error));
                    self.abort(handle, header);
                }
            },
        }
    }
}

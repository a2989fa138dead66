//! A device, its driver, and the peer that a test plays.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::super::spec::header::BYTES;
use super::super::{Network, NetworkView};
use crate::config::{DatagramLink, FileSource, MacAddress, NetworkConfig, NetworkId, NetworkLink};
use crate::virtio::testing::{Bench, Part, Used};

/// A network of one pair of queues on a message socket.
pub(super) struct Net {
    pub(super) device: Network,
    pub(super) view: NetworkView,
    pub(super) bench: Bench,
    pub(super) peer: Option<OwnedFd>,
}

/// A config that a test gives the descriptors of.
pub(super) fn config(link: NetworkLink) -> NetworkConfig {
    NetworkConfig::new(NetworkId::new("net0").unwrap(), MacAddress::from_seed("net0"), link)
}

pub(super) fn datagram(header: bool) -> NetworkLink {
    NetworkLink::Datagram(DatagramLink { socket: FileSource::Fd(0), header })
}

pub(super) fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::empty(), None).unwrap()
}

impl Net {
    /// With all features, over a link with headers.
    pub(super) fn linked() -> Self {
        Self::with(None)
    }

    /// The same with other features.
    pub(super) fn with(features: Option<u64>) -> Self {
        Self::over(datagram(true), SocketType::SEQPACKET, features)
    }

    pub(super) fn over(link: NetworkLink, kind: SocketType, features: Option<u64>) -> Self {
        let (near, far) = pair(kind);
        let (mut device, view) = Network::new(&config(link), vec![near]).unwrap();
        let bench = Bench::new(&mut device, 256, features);
        Self { device, view, bench, peer: Some(far) }
    }

    /// The offloads of the hello that the peer reads.
    pub(super) fn hello(&self) -> Option<u32> {
        let message = self.peer_reads()?;
        assert_eq!((message.len(), &message[..8]), (16, &b"NLNK\x01\0\0\0"[..]));
        assert_eq!(message[12..], [0xdc, 5, 0, 0]);
        Some(u32::from_le_bytes(message[8..12].try_into().unwrap()))
    }

    /// The next message that the peer has.
    pub(super) fn peer_reads(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let (_, read) = recv(self.peer.as_ref()?, &mut *bytes, RecvFlags::DONTWAIT).ok()?;
        bytes.truncate(read);
        Some(bytes)
    }

    /// The peer sends a message, if there is room.
    pub(super) fn peer_puts(&self, message: &[u8]) -> bool {
        send(self.peer.as_ref().unwrap().as_fd(), message, SendFlags::DONTWAIT).is_ok()
    }

    /// The peer sends a frame behind a header, and the device has its turns. Returns those.
    pub(super) fn peer_sends(&mut self, header: &[u8], frame: &[u8]) -> usize {
        assert!(self.peer_puts(&[header, frame].concat()));
        self.bench.turn()
    }

    /// The driver offers receive buffers.
    pub(super) fn give(&mut self, buffers: &[u32]) {
        for buffer in buffers {
            self.bench.queues[0].add(&[Part::Write(*buffer)]);
        }
        self.bench.kick(0);
    }

    /// The guest sends a frame.
    pub(super) fn guest_sends(&mut self, header: &[u8], frame: &[u8]) {
        self.bench.queues[1].add(&[Part::Read(header.to_vec()), Part::Read(frame.to_vec())]);
        self.bench.kick(1);
    }

    /// The next frame that the driver has, put together of its buffers, with its header.
    pub(super) fn received(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let Used { len, data, .. } = self.bench.queues[0].used()?;
        let mut message = data[..usize::try_from(len).unwrap()].to_vec();
        for _ in 1..u16::from_le_bytes([message[10], message[11]]) {
            let Used { len, data, .. } = self.bench.queues[0].used().expect("all buffers of a frame at once");
            message.extend(&data[..usize::try_from(len).unwrap()]);
        }
        let frame = message.split_off(BYTES);
        Some((message, frame))
    }

    /// Pauses the device and lets it go on.
    pub(super) fn pause(&mut self, features: u64) {
        let returned = self.bench.stop();
        let device: &mut dyn crate::virtio::device::Device = &mut self.device;
        device.reclaim(returned.state);
        for queue in returned.queues.iter().flatten() {
            assert!(queue.position().is_quiet(), "nothing is in flight");
        }
        self.bench.resume(device, features, returned.queues);
    }
}

/// A header: flags, kind, segment, start and offset of the checksum.
pub(super) fn header_of(flags: u8, gso_type: u8, gso_size: u16, start: u16, offset: u16) -> [u8; BYTES] {
    let [[a, b], [c, d], [e, f]] = [gso_size, start, offset].map(u16::to_le_bytes);
    [flags, gso_type, 0, 0, a, b, c, d, e, f, 0, 0]
}

/// A frame of `len` bytes that differs in every place.
pub(super) fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from((n * 7 + n / 251 + len) % 253).unwrap()).collect()
}

//! A guest made of arbitrary bytes.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM};
use super::{Vsock, receive_accepted};
use crate::config::VsockConfig;
use crate::virtio::testing::{Bench, Part};

/// Drives a device with packets made of `data`, twelve bytes each, over real queues and with host
/// sockets that talk back. For fuzzing: the only thing asserted is that the device comes to rest
/// and asks for no reset.
///
/// # Panics
/// When the device breaks, or the host has no descriptors.
pub fn fuzz_packets(data: &[u8]) {
    let (mut device, control) = Vsock::new(&VsockConfig::default(), None).expect("a device");
    let (ours, theirs) = crate::sys::stream_pair().expect("a channel");
    crate::sys::set_nonblocking(&ours).expect("a channel");
    control.listen(1, theirs);
    control.connect(2, Box::new(drop));
    let (joined, far) = crate::sys::stream_pair().expect("a stream");
    control.join(3, vec![7; 16], joined, Box::new(drop));
    let mut bench = Bench::new(&mut device, 64, None);
    let mut streams: Vec<UnixStream> = vec![far.into()];
    streams[0].set_nonblocking(true).expect("a stream");
    for chunk in data.chunks(12) {
        let mut bytes = [0u8; 12];
        bytes[..chunk.len()].copy_from_slice(chunk);
        let [op, ports, flags, len, shape, alloc, forwarded, kind, cid, extra, room, talk] = bytes;
        let header = Header {
            src_cid: if cid < 250 { 3 } else { u64::from(cid) },
            dst_cid: if cid & 15 < 15 { HOST_CID } else { u64::from(extra) },
            src_port: u32::from(ports & 7),
            dst_port: if ports & 0x80 == 0 { 1 } else { (1 << 30) + u32::from(ports >> 4 & 3) },
            len: u32::from(len) << (shape & 15),
            kind: if kind < 250 { TYPE_STREAM } else { u16::from(kind) },
            op: u16::from(if op < 240 { op & 7 } else { op }),
            flags: u32::from(flags),
            buf_alloc: u32::from(alloc) << (shape >> 4),
            fwd_cnt: u32::from(forwarded),
        };
        let mut packet = header.encode().to_vec();
        let sent = if extra & 3 == 3 {
            usize::from(extra)
        } else {
            crate::sys::fits(header.len.min(8192), "usize has at least 32 bits on every host of Nelly")
        };
        packet.resize(if extra == 255 { usize::from(len) % HEADER_LEN } else { HEADER_LEN + sent }, extra);
        if !packet.is_empty() {
            bench.queues[1].add(&[Part::Read(packet)]);
        }
        bench.queues[0].add(&[Part::Write(u32::from(room) + 1)]);
        bench.kick(1);
        bench.kick(0);
        while bench.queues[0].used().is_some() || bench.queues[1].used().is_some() {}
        while let Ok(Some((stream, ..))) = receive_accepted(ours.as_fd()) {
            stream.set_nonblocking(true).expect("a stream");
            streams.push(stream);
        }
        match (talk & 7, streams.last_mut()) {
            (0, _) => drop(streams.pop()),
            // Neither a full nor a closed stream matters here.
            (1..=3, Some(stream)) => drop(stream.write(&[talk; 300])),
            (4..=5, Some(stream)) => drop(stream.read(&mut [0; 1000])),
            _ => {}
        }
        if bench.queues[0].is_full() || bench.queues[1].is_full() {
            break;
        }
    }
    assert_eq!(bench.interrupt.faults(), 0);
}

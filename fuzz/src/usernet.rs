//! Frames of a guest to the user-mode network, whose host sockets do what they like.

use std::collections::HashMap;
use std::time::Duration;

use nelly_net::config::{Protocol, UsernetConfig, Verdict};
use nelly_net::core::{Action, Data, Failure, FlowId, Net};
use nelly_net::link::{Hello, NetHeader, Offloads};

use super::Bytes;

/// A host socket, of which only lengths are kept.
#[derive(Default)]
struct Socket {
    connecting: bool,
    stream: bool,
    /// Nothing stands for it: only the core says what it holds.
    local: bool,
    ended: bool,
    ring: usize,
    left: usize,
    /// The last datagram: of a question, what was asked.
    asked: Vec<u8>,
}

/// Gives the network what the input describes: an operation a byte, and what it needs behind it.
///
/// # Panics
/// When there are more flows than allowed, or the network sends or frees what is not there.
pub fn run(data: &[u8]) {
    const FLOWS: u32 = 16;
    let mut input = Bytes(&data[..data.len().min(8192)]);
    let [offloads] = input.take();
    let mut config =
        UsernetConfig { max_flows: FLOWS, peers: true, log_fd: Some(9), ..UsernetConfig::default() };
    config.dns_servers = vec!["192.0.2.53".parse().expect("an address")];
    // Rules of names, by one of the bits that say nothing of offloads.
    if offloads & 8 != 0 {
        let rule = |text: &str| text.parse().expect("a rule");
        config.default = Verdict::Deny;
        config.allow = vec![rule("a."), rule("*.a:1-90"), rule("192.0.2.1:7")];
        config.deny = vec![rule("b."), rule("*.b:80")];
    }
    let mut number = 0;
    let mut net = Net::new(config, move || {
        number += 0x0123_4567_89ab;
        number
    })
    .expect("the default configuration is sound");
    let mut now = Duration::ZERO;
    let mut sockets: HashMap<FlowId, Socket> = HashMap::new();
    net.message(now, &Hello { offloads: Offloads(offloads.into()), mtu: 1500 }.to_bytes());
    while !input.is_empty() {
        let [operation, which] = input.take();
        let mut ids: Vec<FlowId> = sockets.keys().copied().collect();
        ids.sort_unstable();
        let id = ids.get(usize::from(which) % ids.len().max(1)).copied();
        let mut message = Vec::new();
        if operation & 7 <= 3 {
            message = frame(operation, which, &mut input);
            net.message(now, &message);
            let _passes = net.is_from_peer(&message);
        } else if operation & 7 == 7 {
            now += Duration::from_millis(u64::from(which) * u64::from(which) * 10);
            net.tick(now);
        } else if let Some(id) = id
            && let Some(socket) = sockets.get_mut(&id)
            && !socket.local
        {
            let [much] = input.take();
            match operation & 7 {
                4 if socket.connecting && much & 3 != 0 => {
                    socket.connecting = false;
                    net.connected(now, id);
                }
                4 => net.failed(
                    now,
                    id,
                    if much & 4 == 0 { Failure::Refused } else { Failure::HostUnreachable },
                ),
                5 if socket.stream && !socket.connecting && net.answers_in_stream(id) => {
                    net.answer_part(now, id, &input.take::<40>());
                }
                5 if socket.stream && !socket.connecting && !socket.ended => {
                    socket.ended = much == 0;
                    socket.ring += usize::from(much) * 300;
                    match much {
                        0 => net.ended(now, id),
                        _ => net.received(now, id, usize::from(much) * 300),
                    }
                }
                5 if !socket.stream && much & 1 != 0 && socket.asked.len() >= 12 => {
                    net.datagram(now, id, answer(&socket.asked, much, &mut input));
                }
                5 if !socket.stream => net.datagram(now, id, vec![much; usize::from(much) * 200]),
                6 if socket.stream => {
                    socket.left = socket.left.min(usize::from(much));
                    net.unwritten(now, id, socket.left);
                }
                6 => net.broken(id),
                _ => {}
            }
        }
        act(&mut net, now, &message, &mut sockets, operation & 8 == 0);
        assert!(sockets.len() <= usize::try_from(FLOWS).expect("a small number"));
        if operation & 16 == 0 {
            drain(&mut net, now, &sockets);
        }
    }
    net.close_all();
    act(&mut net, now, &[], &mut sockets, true);
    assert!(sockets.is_empty(), "sockets are left");
}

fn act(net: &mut Net, now: Duration, message: &[u8], sockets: &mut HashMap<FlowId, Socket>, takes: bool) {
    while let Some(action) = net.take_action() {
        match action {
            Action::Connect { flow, protocol, .. } => {
                let stream = protocol == Protocol::Tcp;
                sockets.insert(flow, Socket { connecting: stream, stream, ..Socket::default() });
            }
            Action::Local { flow } => {
                sockets.insert(flow, Socket { stream: true, local: true, ..Socket::default() });
            }
            Action::Feed { flow, bytes } => {
                sockets.get_mut(&flow).expect("a stream that was begun").ring += bytes.len();
            }
            Action::Write { flow, range } => {
                let socket = sockets.get_mut(&flow).expect("a socket that is connected");
                socket.left += if takes { 0 } else { message[range].len() };
                net.unwritten(now, flow, socket.left);
            }
            Action::Free { flow, len } => {
                let socket = sockets.get_mut(&flow).expect("a socket that is connected");
                socket.ring -= usize::try_from(len).expect("a length");
            }
            Action::Close { flow, .. } => drop(sockets.remove(&flow)),
            Action::WriteHeld { flow, bytes } => {
                let socket = sockets.get_mut(&flow).expect("a socket that is connected");
                socket.left += if takes { 0 } else { bytes.len() };
                net.unwritten(now, flow, socket.left);
            }
            Action::Datagram { flow, bytes } => {
                if let Some(socket) = sockets.get_mut(&flow) {
                    socket.asked = bytes;
                }
            }
            Action::HandOver { .. } | Action::Shutdown { .. } | Action::Peers | Action::Log(_) => {}
        }
    }
}

/// An answer to a question, with records that the input says.
fn answer(asked: &[u8], much: u8, input: &mut Bytes<'_>) -> Vec<u8> {
    let mut out = asked.to_vec();
    out[2] |= 0x80;
    out[7] = much >> 5;
    for _ in 0..much >> 5 {
        let [kind, seconds, a, b] = input.take();
        out.extend([0xc0, 12 + (a & 3), 0, [1, 28, 5, 16][usize::from(kind & 3)], 0, 1, 0, 0, seconds, 0, 0]);
        match kind & 7 {
            0 => out.extend([4, 192, 0, 2, b & 3]),
            1 => out.extend([16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b]),
            2 => out.extend([3, 1, b'a' + (b & 1), 0]),
            _ => out.extend([a, b, a]),
        }
    }
    out
}

fn drain(net: &mut Net, now: Duration, sockets: &HashMap<FlowId, Socket>) {
    for round in 0.. {
        let Some(mut message) = net.next_frame(now) else { return };
        let len = match &message.data {
            Data::None => 0,
            Data::Bytes(bytes) => bytes.len(),
            Data::Stream { flow, offset, len } => {
                assert!(offset + len <= sockets[flow].ring, "bytes are sent that are not there");
                *len
            }
        };
        message.complete(&[&vec![0; len]]);
        assert!(message.head.len() + len <= 65_562);
        assert!(round < 100_000, "it never comes to rest");
    }
}

/// A frame: raw bytes, or sound headers with numbers of the input.
fn frame(operation: u8, which: u8, input: &mut Bytes<'_>) -> Vec<u8> {
    // Without checksums to be looked at, lies come further.
    let header = NetHeader { flags: NetHeader::DATA_VALID, ..NetHeader::default() };
    let mut out = header.to_bytes().to_vec();
    out.extend(*b"\x02nelly\x52\x54\x00\x01\x02\x03");
    let [a, b, c, d, e, len] = input.take();
    let mut payload = vec![e; usize::from(len) * usize::from(1 + (operation >> 5))];
    // What a stream that is held back may begin with.
    for (begins, with) in
        [(7, &b"GET / HTTP/1.1\r\nHost: x.a\r\n\r\n"[..]), (9, b"\x16\x03\x01\0\x40\x01\0\0\x3c\x03\x03")]
    {
        if len & 15 == begins && payload.len() >= with.len() {
            payload[..with.len()].copy_from_slice(with);
        }
    }
    let mut inner = Vec::new();
    let number = match operation & 3 {
        0 => {
            out.extend([8, a & 6]);
            out.extend(input.take::<40>());
            return out;
        }
        1 | 2 => {
            // The resolver's port is one of them.
            inner.extend([0x90, which & 3, 0, [80, 81, 82, 53][usize::from(which >> 6)]]);
            inner.extend([0, 0, a, b, 0, 0, c, d, 0x50, e, d, c, 0, 0, 0, 0]);
            // Numbers of ours begin with what the generator gives; acknowledge near it.
            if operation & 3 == 2 {
                let [x, y, z, w] = input.take();
                inner[8..12].copy_from_slice(&[x, y, z, w]);
            }
            6
        }
        _ => {
            inner.extend([0x90, which & 3, 0, [53, 67, 7, 80][usize::from(a & 3)]]);
            inner.extend([0, 0, 0, 0]);
            inner.extend(input.take::<24>());
            17
        }
    };
    inner.extend(payload);
    let total = u16::try_from(20 + inner.len()).expect("a short packet").to_be_bytes();
    let place = if number == 17 && b & 7 == 7 { [c & 0x20, d & 31] } else { [0, 0] };
    let last = if b & 8 == 0 { [192, 0, 2, 1] } else { [10, 0, 2, 2 + (b >> 6)] };
    let mut ip =
        vec![0x45, 0, total[0], total[1], 0, c & 1, place[0], place[1], 64, number, 0, 0, 10, 0, 2, 15];
    ip.extend(last);
    let sum = nelly_net::wire::checksum::checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    out.extend([8, 0]);
    out.extend(ip);
    out.extend(inner);
    out
}

/// Calls, streams both ways, names and datagrams.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    // operation, which, then a, b, c, d, flags, len
    let syn = [1, 1, 0, 1, 0, 0, 2, 0];
    let data = [1 | 32, 1, 0, 2, 0, 1, 16, 200];
    let request = [1 | 32, 1, 0, 2, 0, 1, 16, 39];
    let fin = [1, 1, 0, 2, 0, 1, 17, 0];
    let (connect, feed, end, wait, took) = ([4, 0, 1], [5, 0, 90], [5, 0, 0], [7, 200], [6, 0, 0]);
    let name = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &[1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1]]
        .concat();
    let datagram = [3, 2, 2, 0, 0, 0, 0, 50];
    vec![
        [&[0x3f][..], &syn, &connect, &data, &feed, &wait, &fin, &end, &took].concat(),
        [&[0][..], &syn, &connect, &feed, &end, &wait, &wait, &data].concat(),
        [&[1][..], &name, &[0; 8], &datagram, &[0; 24], &feed, &wait, &wait].concat(),
        // A name with an address, under rules, then a connection to it and a request.
        [&[8][..], &name, &[0; 5], &[5, 0, 33, 0, 9, 0, 1], &syn, &connect, &request, &took, &wait].concat(),
    ]
}

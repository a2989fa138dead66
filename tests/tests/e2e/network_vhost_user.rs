//! A guest whose queues a program of the host serves (vhost-user): one made of the crate
//! `vhost-user-backend`, which answers to one address and to nothing else.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT as _;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::keeper::Kept;

/// VERSION_1, MRG_RXBUF, and that there are features of the protocol.
const FEATURES: u64 = 1 << 32 | 1 << 15 | 1 << 30;
/// Bytes of the header before each frame.
const HEADER: usize = 12;
/// Who answers.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ADDRESS: [u8; 4] = [10, 3, 0, 1];

/// The sum of 16-bit words, as checksums of the Internet have it (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    [!sum.to_be_bytes()[2], !sum.to_be_bytes()[3]]
}

/// What is answered to a frame: who has the address, and echo requests.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let mut answer = frame.to_vec();
    answer[..6].copy_from_slice(&frame[6..12]);
    answer[6..12].copy_from_slice(&MAC);
    match frame.get(12..14)? {
        // ARP: a request for the address.
        [8, 6] if frame.get(20..22)? == [0, 1] && frame.get(38..42)? == ADDRESS => {
            answer[21] = 2;
            answer[22..28].copy_from_slice(&MAC);
            answer[28..32].copy_from_slice(&ADDRESS);
            answer[32..42].copy_from_slice(&frame[22..32]);
        }
        // IPv4 without options, ICMP, an echo request.
        [8, 0] if frame.get(14)? == &0x45 && frame.get(23)? == &1 && frame.get(34)? == &8 => {
            answer[26..30].copy_from_slice(&frame[30..34]);
            answer[30..34].copy_from_slice(&frame[26..30]);
            let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            answer[34..38].copy_from_slice(&[0; 4]);
            let sum = checksum(&answer[34..end]);
            answer[36..38].copy_from_slice(&sum);
        }
        _ => return None,
    }
    Some(answer)
}

struct Answers(GuestMemoryAtomic<GuestMemoryMmap>);

impl VhostUserBackendMut for Answers {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.0 = memory;
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some(new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap())
    }

    fn handle_event(&mut self, _: u16, _: EventSet, rings: &[VringMutex], _: usize) -> io::Result<()> {
        let (receive, transmit) = (&rings[0], &rings[1]);
        let memory = self.0.memory();
        loop {
            let Some(sent) = transmit.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone()) else {
                break;
            };
            let head = sent.head_index();
            let mut bytes = Vec::new();
            for part in sent.readable() {
                let mut piece = vec![0; part.len() as usize];
                memory.read_slice(&mut piece, part.addr()).unwrap();
                bytes.extend(piece);
            }
            transmit.add_used(head, 0).unwrap();
            let Some(answer) = bytes.get(HEADER..).and_then(answer) else { continue };
            // A guest that has no room loses it, as on any wire.
            let Some(space) = receive.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone()) else {
                continue;
            };
            let head = space.head_index();
            // No offloads, and one buffer.
            let message = [&[0; 10][..], &1_u16.to_le_bytes(), &answer].concat();
            let mut rest = &message[..];
            for part in space.writable() {
                let piece = rest.split_off(..rest.len().min(part.len() as usize)).unwrap();
                memory.write_slice(piece, part.addr()).unwrap();
            }
            assert!(rest.is_empty(), "Linux has buffers for whole frames");
            receive.add_used(head, u32::try_from(message.len()).unwrap()).unwrap();
        }
        transmit.signal_used_queue()?;
        receive.signal_used_queue()
    }
}

/// Serves the first who connects to `path`, until they go.
fn serve(path: &Path) -> JoinHandle<()> {
    let mut listener = Listener::new(path, false).unwrap();
    thread::spawn(move || {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::default());
        let answers = Arc::new(Mutex::new(Answers(memory.clone())));
        let mut daemon = VhostUserDaemon::new("answers".to_owned(), answers, memory).unwrap();
        daemon.start(&mut listener).unwrap();
        // How the connection ended says nothing here.
        let _ended = daemon.wait();
    })
}

#[test]
fn a_linux_talks_to_a_program_that_serves_its_queues() {
    let kept = Kept::new();
    let path = kept.0.path().join("vhost.sock");
    let serves = serve(&path);
    let net = format!("vhost-user={},ip=10.3.0.2/24,gw=10.3.0.1", path.display());
    kept.keep(&["--net", &net, "--monitor-user", "nobody"], "sleep 100000");
    // More than the queues are long, in frames of every kind of length.
    let pings = |count: u32, size: u32| {
        let script = format!("ping -q -A -c {count} -s {size} 10.3.0.1 | grep -o '[0-9]* packets received'");
        assert_eq!(kept.exec(&script), format!("{count} packets received"), "{size} bytes");
    };
    pings(300, 56);
    pings(9, 1472);
    kept.out(&["pause", "box"]);
    kept.out(&["unpause", "box"]);
    pings(9, 1000);
    // Whoever looks is told who serves the queues, and what the monitor has given up.
    let shown: Value = serde_json::from_str(&kept.out(&["inspect", "box"])).unwrap();
    let monitor = &shown[0]["monitor"];
    let devices = monitor["devices"].as_array().unwrap();
    let network = devices.iter().find(|device| device["kind"] == "net").unwrap();
    assert_eq!(network["network"]["peer_pairs"], 1, "{network}");
    let confinement = &monitor["confinement"];
    assert_eq!(confinement["seccomp"], true, "{monitor}");
    assert_eq!(confinement["user"], serde_json::json!({"uid": 65534, "gid": 65534}), "{confinement}");
    assert_eq!(confinement["namespaces"][0], "network", "{confinement}");
    kept.out(&["rm", "-f", "box"]);
    serves.join().unwrap();
}

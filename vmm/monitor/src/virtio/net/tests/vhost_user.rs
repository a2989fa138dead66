//! The queues served by somebody else: by the crate `vhost-user-backend`, which knows nothing of
//! this project, and by played peers that break the protocol.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::vhost_user_peer::{FEW, PROTOCOL, Said, play, play_with_files};
use super::*;
use crate::config::{FileSource, QueuePairs};
use crate::virtio::testing::{Bench, Part};

const RINGS: u64 = ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC;

fn config(pairs: u8) -> NetworkConfig {
    let mut config = played::config(NetworkLink::VhostUser(FileSource::Fd(0)));
    config.queues = QueuePairs::new(pairs.into()).unwrap();
    config
}

/// A device whose queues are served by whoever is at the other end.
fn served(pairs: u8, socket: UnixStream) -> Net {
    let (mut device, view) = Network::new(&config(pairs), vec![socket.into()]).unwrap();
    let bench = Bench::shared(&mut device, 256, None);
    Net { device, view, bench, peer: None }
}

/// Sends back what the guest sends, on the same pair of queues.
struct Echo {
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    pairs: usize,
    features: u64,
    agreed: Arc<Mutex<Vec<u64>>>,
}

impl VhostUserBackendMut for Echo {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2 * self.pairs
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn acked_features(&mut self, features: u64) {
        self.agreed.lock().unwrap().push(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some(new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap())
    }

    fn handle_event(&mut self, event: u16, _: EventSet, rings: &[VringMutex], _: usize) -> io::Result<()> {
        let pair = usize::from(event) / 2;
        let (receive, transmit) = (&rings[2 * pair], &rings[2 * pair + 1]);
        let memory = self.memory.memory();
        loop {
            let Some(frame) = transmit.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone()) else {
                break;
            };
            let Some(space) = receive.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone()) else {
                transmit.get_mut().get_queue_mut().go_to_previous_position();
                break;
            };
            let (from, to) = (frame.head_index(), space.head_index());
            let mut bytes = Vec::new();
            for part in frame.readable() {
                let mut piece = vec![0; part.len() as usize];
                memory.read_slice(&mut piece, part.addr()).unwrap();
                bytes.extend(piece);
            }
            bytes[10..12].copy_from_slice(&1u16.to_le_bytes());
            let mut rest = &bytes[..];
            for part in space.writable() {
                let piece = rest.split_off(..rest.len().min(part.len() as usize)).unwrap();
                memory.write_slice(piece, part.addr()).unwrap();
            }
            assert!(rest.is_empty(), "buffers of the driver are large");
            transmit.add_used(from, 0).unwrap();
            receive.add_used(to, u32::try_from(bytes.len()).unwrap()).unwrap();
        }
        transmit.signal_used_queue()?;
        receive.signal_used_queue()
    }
}

/// Runs the crate's peer; it ends with the connection. What features were agreed on, each time.
fn echo(pairs: usize, features: u64) -> (UnixStream, Arc<Mutex<Vec<u64>>>, JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vhost.sock");
    let mut listener = Listener::new(&path, false).unwrap();
    let near = UnixStream::connect(&path).unwrap();
    let agreed = Arc::new(Mutex::new(Vec::new()));
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::default());
    let backend = Echo { memory: memory.clone(), pairs, features, agreed: agreed.clone() };
    let backend = Arc::new(Mutex::new(backend));
    let mut daemon = VhostUserDaemon::new("echo".to_owned(), backend, memory).unwrap();
    daemon.start(&mut listener).unwrap();
    let thread = std::thread::spawn(move || {
        // How the connection ended says nothing here.
        let _ = daemon.wait();
    });
    (near, agreed, thread)
}

/// Sends frames on a pair of queues and takes them back.
fn round_trips(net: &mut Net, pair: usize, count: usize) {
    for n in 0..count {
        let sent = frame(60 + 13 * n % 1400);
        net.bench.queues[2 * pair].add(&[Part::Write(2000)]);
        net.bench.queues[2 * pair + 1].add(&[Part::Read([&header_of(0, 0, 0, 0, 0)[..], &sent].concat())]);
        net.bench.kick(2 * pair);
        net.bench.kick(2 * pair + 1);
        let came = (0..400).find_map(|_| {
            let used = net.bench.queues[2 * pair].used();
            if used.is_none() {
                net.bench.wait(Duration::from_millis(50));
            }
            used
        });
        let came = came.unwrap_or_else(|| panic!("frame {n} of pair {pair} comes back: {:?}", net.view));
        assert_eq!(usize::try_from(came.len).unwrap(), BYTES + sent.len());
        assert!(came.data[BYTES..BYTES + sent.len()] == sent, "frame {n}");
        let mut given_back = || {
            (0..400).any(|_| {
                let used = net.bench.queues[2 * pair + 1].used().is_some();
                if !used {
                    net.bench.wait(Duration::from_millis(50));
                }
                used
            })
        };
        assert!(given_back(), "frame {n}");
    }
}

#[test]
fn another_process_serves_the_queues_across_pauses_and_resets() {
    for features in [FEW, RINGS | feature::MRG_RXBUF | PROTOCOL, ring::VERSION_1] {
        let (near, agreed, thread) = echo(1, features);
        let again = near.try_clone().unwrap();
        let mut net = served(1, near);
        let rings = RINGS & features;
        assert_eq!(
            (net.device.withheld() & RINGS, net.device.features() & feature::MRG_RXBUF),
            (RINGS & !features, features & feature::MRG_RXBUF)
        );
        assert_eq!(net.device.features() & (feature::CTRL_GUEST_OFFLOADS | feature::CSUM), 0);
        // More than the rings are long.
        round_trips(&mut net, 0, 300);
        assert!(net.view.is_up() && net.view.sent().frames == 0 && !net.view.counts_all());
        assert_eq!((net.view.peer_pairs(), net.view.kernel_pairs()), (1, 0));
        let mine = net.device.features() | rings;
        for _ in 0..3 {
            net.pause(mine);
            round_trips(&mut net, 0, 9);
        }
        // A driver that starts anew, with less.
        let returned = net.bench.stop();
        net.device.reclaim(returned.state);
        net.device.reset();
        net.bench = Bench::shared(&mut net.device, 128, Some(ring::VERSION_1));
        round_trips(&mut net, 0, 140);
        let said = agreed.lock().unwrap().clone();
        assert_eq!(said.first(), Some(&(features & !(PROTOCOL & !features))));
        assert_eq!(said.last(), Some(&(ring::VERSION_1 | features & PROTOCOL)));
        assert_eq!((net.bench.interrupt.faults(), net.bench.interrupt.needs_reset()), (0, false));
        // The machine starts again: another device on the same connection.
        drop(net.bench.stop());
        let mut net = served(1, again);
        round_trips(&mut net, 0, 9);
        drop((net.bench.stop(), net));
        thread.join().unwrap();
    }
}

#[test]
fn several_pairs_are_served_as_the_driver_uses_them() {
    let (near, _, thread) = echo(2, FEW | feature::MQ | ring::EVENT_IDX);
    let mut net = served(2, near);
    for pairs in [1u8, 2, 1, 2] {
        net.bench.queues[4].add(&[Part::Read(vec![4, 0, pairs, 0]), Part::Write(1)]);
        net.bench.kick(4);
        assert_eq!(net.bench.queues[4].used().unwrap().data, [0]);
        assert_eq!(net.view.peer_pairs(), u16::from(pairs));
        for pair in 0..usize::from(pairs) {
            round_trips(&mut net, pair, 20);
        }
    }
    assert!(net.view.is_up());
    drop((net.bench.stop(), net));
    thread.join().unwrap();

    let (near, _, thread) = echo(1, FEW);
    let error = Network::new(&config(2), vec![near.into()]).err().unwrap().to_string();
    assert_eq!(error, "it serves 1 pairs of queues at most, not 2");
    thread.join().unwrap();
}

#[test]
fn its_end_is_the_end_of_the_link_and_not_of_the_machine() {
    let (near, _, thread) = echo(1, FEW);
    let cut = near.try_clone().unwrap();
    let mut net = served(1, near);
    round_trips(&mut net, 0, 5);
    // As if it was killed.
    cut.shutdown(std::net::Shutdown::Both).unwrap();
    thread.join().unwrap();
    net.bench.wait(Duration::from_secs(10));
    assert!(!net.view.is_up() && net.view.peer_pairs() == 0);
    let interrupt = &net.bench.interrupt;
    assert_eq!((interrupt.tally().faults()[0].kind, interrupt.needs_reset()), ("host", false));
    // The driver's frames are dropped, one like another.
    for n in 1..=300 {
        net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(100));
        assert!(net.bench.queues[1].used().is_some());
        assert_eq!(net.view.sent().lost, n);
    }
    let features = net.device.features() | ring::VERSION_1;
    net.pause(features);
    assert!(!net.view.is_up());
}

#[test]
fn a_peer_that_does_not_know_the_protocol_is_told_of_at_the_start() {
    type Say = fn(u32) -> Said;
    let says: [(Say, &str); 9] = [
        (|_| Said::End, "ended the connection instead of answering GetFeatures"),
        (|number| if number == 15 { Said::End } else { Said::Right }, "GetProtocolFeatures"),
        (|number| if number == 1 { Said::Other } else { Said::Right }, "its answer to GetFeatures is none"),
        (|number| if number == 1 { Said::Words(vec![0; 4]) } else { Said::Right }, "4 bytes"),
        (|number| if number == 1 { Said::Words(vec![0; 9]) } else { Said::Right }, "9 bytes"),
        (|number| if number == 1 { Said::Words(vec![0; 8]) } else { Said::Right }, "before virtio 1.0"),
        (|number| if number == 17 { Said::Words(vec![0; 8]) } else { Said::Right }, "it serves 0 pairs"),
        (|number| if number == 15 { Said::Silence } else { Said::Right }, "GetProtocolFeatures within 5 s"),
        (|number| if number == 1 { Said::Drops } else { Said::Right }, "GetFeatures within 5 seconds"),
    ];
    // Those that are waited for are waited for at once.
    std::thread::scope(|scope| {
        for (say, text) in says {
            scope.spawn(move || {
                let (near, thread) = play(say);
                let error = Network::new(&config(2), vec![near.into()]).err().unwrap().to_string();
                assert!(error.contains(text), "{text}: {error}");
                thread.join().unwrap();
            });
        }
    });
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    assert!(Network::new(&config(1), vec![file]).is_err());
    let (message, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let error = Network::new(&config(1), vec![message.into()]).err().unwrap();
    assert_eq!(error.to_string(), "it is no stream socket");
}

#[test]
fn a_peer_that_fails_later_takes_down_the_link_alone() {
    // Refusals of features, of the memory, of a ring, of a doorbell; an end; another number.
    let refused = || Said::Words(1u64.to_ne_bytes().to_vec());
    for number in [2, 5, 8, 9, 10, 12, 13, 14, 18] {
        for how in 0..3 {
            let (near, thread) = play(move |asked| match (asked == number, how) {
                (false, _) => Said::Right,
                (true, 0) => refused(),
                (true, 1) => Said::End,
                (true, _) => Said::Other,
            });
            let net = served(1, near);
            assert!(!net.view.is_up(), "{number} {how}");
            assert_eq!(net.bench.interrupt.tally().faults()[0].kind, "host");
            assert!(!net.bench.interrupt.needs_reset());
            drop(net);
            thread.join().unwrap();
        }
    }
    // It does not say where it stands: the next start knows that it is lost.
    let says: [(fn() -> Said, bool); 3] =
        [(|| Said::End, false), (|| Said::Other, true), (|| Said::Words(vec![9, 0, 0, 0, 0, 0, 0, 0]), true)];
    for (say, is_astray) in says {
        let (near, thread) = play(move |number| if number == 11 { say() } else { Said::Right });
        let mut net = served(1, near);
        assert!(net.view.is_up());
        let features = net.device.features() | ring::VERSION_1;
        net.pause(features);
        assert!(!net.view.is_up() && !net.bench.interrupt.needs_reset());
        // It may still write to the memory, unless it is gone.
        assert_eq!(net.view.is_astray(), is_astray);
        drop(net);
        thread.join().unwrap();
    }
}

#[test]
fn a_machine_that_starts_again_goes_on_without_a_peer_it_had_lost() {
    let (near, thread) = play(|_| Said::Right);
    let socket = near.try_clone().unwrap();
    drop(served(1, near));
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    thread.join().unwrap();
    let (_device, view) = Network::new(&config(1), vec![socket.into()]).unwrap();
    assert!(!view.is_up());
}

#[test]
fn memory_that_is_not_shared_is_not_given_away() {
    let (near, thread) = play(|_| Said::Right);
    let (mut device, view) = Network::new(&config(1), vec![near.into()]).unwrap();
    let bench = Bench::new(&mut device, 256, None);
    assert!(!view.is_up());
    assert!(bench.interrupt.tally().faults()[0].first.contains("this process's alone"));
    drop((bench, device));
    thread.join().unwrap();
}

#[test]
fn a_peer_that_makes_doorbells_block_holds_nobody_up() {
    let (near, thread, came) = play_with_files(|_| Said::Right);
    let cut = near.try_clone().unwrap();
    let mut net = served(1, near);
    let block = || {
        for (request, file) in came.lock().unwrap().drain(..) {
            // Doorbells of the driver, what interrupts it, what tells that rings are broken.
            if let 12..=14 = request {
                rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).unwrap();
            }
            if request == 12 {
                rustix::io::read(&file, &mut [0; 8]).unwrap();
                rustix::io::write(&file, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            }
        }
    };
    let features = net.device.features() | ring::VERSION_1;
    for _ in 0..3 {
        block();
        net.pause(features);
        assert!(net.view.is_up());
    }
    block();
    // Nor when it ends: the driver's frames are dropped.
    cut.shutdown(std::net::Shutdown::Both).unwrap();
    net.bench.wait(Duration::from_secs(10));
    assert!(!net.view.is_up());
    net.guest_sends(&header_of(0, 0, 0, 0, 0), &frame(100));
    assert_eq!(net.view.sent().lost, 1);
    drop(net);
    thread.join().unwrap();
}

#[test]
fn a_ring_over_two_regions_of_memory_is_not_given_away() {
    for (at, is_up) in [(1 << 20, true), (4096, false)] {
        // Of 512 entries: the descriptors are two pages.
        let (near, thread, came) = play_with_files(|_| Said::Right);
        let (mut device, view) = Network::new(&config(1), vec![near.into()]).unwrap();
        let bench = Bench::split(&mut device, 512, at);
        assert_eq!(view.is_up(), is_up);
        assert_eq!(bench.interrupt.tally().faults().is_empty(), is_up);
        assert!(!bench.interrupt.needs_reset());
        drop((bench, device));
        thread.join().unwrap();
        let requests: Vec<u32> = came.lock().unwrap().iter().map(|(request, _)| *request).collect();
        assert_eq!(requests.contains(&12), is_up, "{requests:?}");
    }
}

#[test]
fn the_limit_of_time_is_that_of_all_pairs_together() {
    let (near, thread) = play(|number| match number {
        // Each is asked where it stands, and has its answer, in less than the limit.
        11 => Said::Late(Duration::from_millis(700)),
        _ => Said::Right,
    });
    let mut net = served(8, near);
    net.bench.queues[16].add(&[Part::Read(vec![4, 0, 8, 0]), Part::Write(1)]);
    net.bench.kick(16);
    assert_eq!((net.bench.queues[16].used().unwrap().data, net.view.peer_pairs()), (vec![0], 8));
    let features = net.device.features() | ring::VERSION_1;
    net.pause(features);
    assert!(net.view.is_astray() && !net.view.is_up());
    let fault = &net.bench.interrupt.tally().faults()[0];
    assert!(fault.first.contains("within 5 seconds"), "{fault:?}");
    drop(net);
    thread.join().unwrap();
}

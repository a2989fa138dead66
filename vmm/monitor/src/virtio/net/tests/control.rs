//! Commands, sound and not, and pairs of queues.

use super::*;
use crate::virtio::testing::{Bench, Part};

const ANSWERED: u8 = 0xa5;

/// The answer to a command; [`ANSWERED`] as it was.
fn command(net: &mut Net, parts: &[&[u8]]) -> u8 {
    let mut chain: Vec<_> = parts.iter().map(|part| Part::Read(part.to_vec())).collect();
    chain.push(Part::Write(1));
    net.bench.queues[2].add(&chain);
    net.bench.kick(2);
    net.bench.queues[2].used().unwrap().data[0]
}

#[test]
fn commands_are_done_or_refused() {
    let mut net = Net::linked();
    assert_eq!(net.hello(), Some(0x37));
    let table: [(&[&[u8]], u8); 18] = [
        // Which frames it wants is not asked.
        (&[&[0, 0], &[1]], 1),
        (&[&[0, 5, 1]], 1),
        (&[&[1, 0], &[0; 4], &[0; 4]], 1),
        // The driver's own address is not its to set.
        (&[&[1, 1], &[2; 6]], 1),
        (&[&[2, 0], &[1, 0]], 1),
        (&[&[3, 0]], 1),
        // There is one pair of queues.
        (&[&[4, 0], &[1, 0]], 1),
        (&[&[4, 0], &[2, 0]], 1),
        (&[&[9, 9], &[2, 0]], 1),
        (&[&[0]], 1),
        (&[&[]], 1),
        (&[&[5, 0], &[2, 0, 0, 0, 0, 0, 0, 0]], 0),
        (&[&[5, 0], &[2, 0, 0, 0, 0, 0, 0, 1]], 1),
        // What is no offload, and what was not negotiated.
        (&[&[5, 0], &[3, 0, 0, 0, 0, 0, 0, 0]], 1),
        (&[&[5, 0], &[0, 4, 0, 0, 0, 0, 0, 0]], 1),
        (&[&[5, 0], &[2, 0, 0, 0]], 1),
        (&[&[5, 1], &[0; 8]], 1),
        (&[&[5, 0], &[0; 8]], 0),
    ];
    for (parts, answer) in table {
        let parts: Vec<_> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        assert_eq!(command(&mut net, &parts), answer, "{parts:?}");
    }
    assert_eq!(net.bench.interrupt.faults(), 0);
    assert_ne!(ANSWERED, spec::control::OK);
    // The peer heard of each change of what the driver takes.
    assert_eq!([net.hello(), net.hello(), net.hello()], [Some(1), Some(0), None]);
}

#[test]
fn what_the_driver_takes_changes_and_stays_over_a_pause() {
    let mut net = Net::linked();
    let features = net.device.features() | ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC;
    net.hello();
    let tso = header_of(1, 1, 1000, 34, 16);
    net.give(&[8000; 8]);
    let passes = |net: &mut Net| {
        net.peer_sends(&tso, &frame(3000));
        net.received().is_some()
    };
    assert!(passes(&mut net));
    assert_eq!(command(&mut net, &[&[5, 0], &2u64.to_le_bytes()]), 0);
    assert!(!passes(&mut net));
    assert_eq!(net.hello(), Some(1));
    net.pause(features);
    assert_eq!(net.hello(), Some(1));
    assert!(!passes(&mut net));
    // A driver that starts anew has what it negotiates.
    let returned = net.bench.stop();
    net.device.reclaim(returned.state);
    net.device.reset();
    net.bench.resume(&mut net.device, features, returned.queues);
    assert_eq!(net.hello(), Some(0x37));
    assert!(passes(&mut net));
}

#[test]
fn a_command_without_room_for_its_answer_is_a_fault() {
    let mut net = Net::linked();
    net.bench.queues[2].add(&[Part::Read(vec![0, 0, 1])]);
    net.bench.kick(2);
    assert_eq!(net.bench.interrupt.tally().faults()[0].kind, "protocol");
    assert!(net.bench.interrupt.needs_reset());
}

#[test]
fn pairs_of_queues_come_into_use_when_the_driver_says_so() {
    let mut config = played::config(NetworkLink::None);
    config.queues = crate::config::QueuePairs::new(4).unwrap();
    let (mut device, view) = Network::new(&config, Vec::new()).unwrap();
    let mut bench = Bench::new(&mut device, 64, None);
    let message = [&header_of(0, 0, 0, 0, 0)[..], &frame(60)].concat();
    let set = |bench: &mut Bench, pairs: &[u8]| {
        bench.queues[8].add(&[Part::Read(vec![4, 0]), Part::Read(pairs.to_vec()), Part::Write(1)]);
        bench.kick(8);
        bench.queues[8].used().unwrap().data[0]
    };
    let mut sent = 0;
    for (pairs, answer, used) in [
        (&[1, 0][..], 0, 1),
        (&[0, 0], 1, 1),
        (&[5, 0], 1, 1),
        (&[3, 0], 0, 3),
        (&[255, 255], 1, 3),
        (&[4], 1, 3),
        (&[4, 0, 0], 1, 3),
        (&[4, 0], 0, 4),
        (&[2, 0], 0, 2),
        (&[1, 0], 0, 1),
    ] {
        assert_eq!((set(&mut bench, pairs), view.pairs()), (answer, used), "{pairs:?}");
        // Frames in a pair that is not in use wait for it to be; with no link they are lost then.
        for pair in 0..usize::from(used) {
            bench.queues[2 * pair + 1].add(&[Part::Read(message.clone())]);
            bench.kick(2 * pair + 1);
            assert_eq!(bench.queues[2 * pair + 1].used().unwrap().len, 0);
            sent += 1;
        }
        assert_eq!(view.sent().lost, sent);
    }
    bench.queues[3].add(&[Part::Read(message)]);
    bench.kick(3);
    assert!(bench.queues[3].used().is_none());
    assert_eq!(set(&mut bench, &[2, 0]), 0);
    assert!(bench.queues[3].used().is_some());
    let returned = bench.stop();
    assert_eq!((returned.queues.len(), view.pairs()), (9, 0));
    assert!(returned.queues.iter().all(|queue| queue.as_ref().unwrap().position().is_quiet()));
    assert_eq!(bench.interrupt.faults(), 0);
}

#[test]
fn without_mq_the_control_queue_is_the_third() {
    let mut config = played::config(NetworkLink::None);
    config.queues = crate::config::QueuePairs::new(4).unwrap();
    let (mut device, _view) = Network::new(&config, Vec::new()).unwrap();
    let features = device.features() & !feature::MQ | ring::VERSION_1;
    let mut bench = Bench::new(&mut device, 64, Some(features));
    bench.queues[2].add(&[Part::Read(vec![4, 0, 1, 0]), Part::Write(1)]);
    bench.kick(2);
    assert_eq!(bench.queues[2].used().unwrap().data, [1]);
}

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::bus::BusDevice;
use crate::hv::IrqLine;
use crate::machine::mailbox::Mailbox;

struct NoLine;

impl IrqLine for NoLine {
    fn pulse(&self) -> io::Result<()> {
        Ok(())
    }

    fn set(&self, _high: bool) -> io::Result<()> {
        Ok(())
    }
}

struct Rig {
    pump: Pump,
    port: Arc<Mutex<Serial<SerialLine>>>,
    poller: Poller,
}

impl Rig {
    fn new() -> Self {
        let (mailbox, _) = Mailbox::new().unwrap();
        let (mut pump, line) = Pump::serial(9, mailbox.bell().clone());
        let port = Arc::new(Mutex::new(Serial::new(line, Arc::new(NoLine))));
        pump.set_port(&port);
        Self { pump, port, poller: Poller::new().unwrap() }
    }

    fn says(&mut self, text: &[u8]) {
        let mut port = self.port.lock().unwrap();
        for byte in text {
            let _ = port.write(0, &[*byte]);
        }
    }

    fn status(&mut self) -> u8 {
        let mut status = [0];
        self.port.lock().unwrap().read(5, &mut status);
        status[0]
    }

    fn turn(&mut self) -> PumpEvent {
        self.pump.turn(&self.poller)
    }

    fn attach(&mut self) -> UnixStream {
        let (ours, theirs) = sys::stream_pair().unwrap();
        assert!(self.pump.attach(&self.poller, ours).unwrap());
        self.turn();
        let stream = UnixStream::from(theirs);
        stream.set_nonblocking(true).unwrap();
        stream
    }
}

fn everything(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
    }
    bytes
}

#[test]
fn a_stream_starts_with_the_latest_output_and_can_be_taken_over() {
    let mut rig = Rig::new();
    rig.pump.wait_for_stream();
    rig.says(&[b'x'; 70_000]);
    rig.turn();
    rig.says(b"the end");
    for _ in 0..3 {
        rig.turn();
    }
    let mut first = rig.attach();
    let bytes = everything(&mut first);
    assert_eq!(bytes.len(), SOFT_LIMIT);
    assert!(bytes.ends_with(b"xthe end"));
    let mut second = rig.attach();
    assert_eq!(first.read(&mut [0]).unwrap(), 0, "taken over");
    rig.says(b"more");
    rig.turn();
    assert_eq!(everything(&mut second), b"more");
    // A reader that goes is as none before it.
    drop(second);
    rig.says(b"unheard");
    rig.turn();
    rig.turn();
    assert_eq!(everything(&mut rig.attach()), b"unheard");
}

#[test]
fn a_reader_that_does_not_read_holds_the_guest_and_loses_nothing_silently() {
    let mut rig = Rig::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    rig.pump.open(None, Some(ours.into()), false);
    let mut sent = 0;
    // A guest that watches its transmitter.
    while rig.status() & 0x20 != 0 {
        rig.says(&[b'a'; 1000]);
        rig.turn();
        sent += 1000;
        assert!(sent < 10_000_000, "nobody holds the guest");
    }
    assert!(sent > SOFT_LIMIT);
    // One that does not watch it.
    rig.says(&vec![b'b'; 2 * HARD_LIMIT]);
    rig.turn();
    let mut reader = theirs;
    reader.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    loop {
        let more = everything(&mut reader);
        rig.turn();
        if more.is_empty() {
            break;
        }
        bytes.extend(more);
    }
    assert_eq!(rig.status() & 0x20, 0x20);
    let text = String::from_utf8(bytes).unwrap();
    let count = |letter| text.chars().filter(|c| *c == letter).count();
    let lost: usize = text.split_once("[nelly: ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap();
    assert!(lost > 0);
    assert_eq!(
        count('b') - "[nelly:  bytes of this console were lost]".matches('b').count() + lost,
        2 * HARD_LIMIT
    );
}

#[test]
fn a_guest_that_never_stops_and_a_reader_that_never_stops_do_not_keep_the_loop() {
    use std::sync::atomic::AtomicBool;

    let mut rig = Rig::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    rig.pump.open(None, Some(ours.into()), false);
    let (port, done) = (rig.port.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (port, done) = (&port, &done);
        for _ in 0..4 {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let _ = port.lock().unwrap().write(0, b"x");
                }
            });
        }
        scope.spawn(move || {
            let mut reader = theirs;
            while reader.read(&mut [0; 1 << 16]).is_ok_and(|count| count > 0) {}
        });
        // Each turn ends by itself, and when it leaves something it asks for another.
        let mut again = 0;
        while again < 200 {
            rig.turn();
            again += usize::from(rig.pump.has_news());
        }
        done.store(true, Ordering::Relaxed);
        while rig.pump.has_news() {
            rig.turn();
        }
        drop(rig);
    });
}

#[test]
fn the_prefix_reaches_the_monitor_and_everything_else_the_guest() {
    let mut rig = Rig::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    rig.pump.open(Some(ours.into()), None, true);
    // RTS.
    let _ = rig.port.lock().unwrap().write(4, &[2]);
    theirs.write_all(b"a\x01\x01\x01yb\x01").unwrap();
    assert_eq!(rig.turn(), PumpEvent::Nothing);
    theirs.write_all(b"x").unwrap();
    assert_eq!(rig.turn(), PumpEvent::Quit);
    let mut typed = Vec::new();
    while rig.status() & 1 != 0 {
        let mut byte = [0];
        rig.port.lock().unwrap().read(0, &mut byte);
        typed.push(byte[0]);
    }
    assert_eq!(typed, b"a\x01\x01yb");
}

#[test]
fn input_beyond_the_guest_s_room_waits_outside() {
    let mut rig = Rig::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    rig.pump.open(Some(ours.into()), None, false);
    let _ = rig.port.lock().unwrap().write(4, &[2]);
    let long: Vec<u8> = (0..20_000u32).map(|n| n.to_le_bytes()[0]).collect();
    theirs.write_all(&long).unwrap();
    let mut typed = Vec::new();
    while typed.len() < long.len() {
        rig.turn();
        assert!(rig.status() & 1 != 0, "stuck after {}", typed.len());
        while rig.status() & 1 != 0 {
            let mut byte = [0];
            rig.port.lock().unwrap().read(0, &mut byte);
            typed.push(byte[0]);
        }
    }
    assert_eq!(typed, long);
}

#[test]
fn a_virtio_console_s_pump_moves_both_ways_and_sees_a_panic() {
    let (mut pump, end) = Pump::console(8).unwrap();
    let poller = Poller::new().unwrap();
    let mut guest = UnixStream::from(end);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let second = ours.try_clone().unwrap();
    pump.open(Some(ours.into()), Some(second.into()), false);
    guest.write_all(b"Kernel panic - ").unwrap();
    pump.turn(&poller);
    assert!(!pump.said().panic);
    guest.write_all(b"not syncing").unwrap();
    theirs.write_all(b"typed").unwrap();
    pump.turn(&poller);
    assert!(pump.said().panic);
    theirs.set_nonblocking(true).unwrap();
    assert_eq!(everything(&mut theirs), b"Kernel panic - not syncing");
    assert_eq!(everything(&mut guest), b"typed");
    pump.forget(&poller);
}

#[test]
fn a_reader_that_the_machine_needs_is_missed_when_something_is_written() {
    let lost = |output: OwnedFd, needed| {
        let mut rig = Rig::new();
        rig.pump.open(None, Some(output), false);
        if needed {
            rig.pump.need_reader();
        }
        // While nothing is written, nothing changes.
        assert_eq!(rig.turn(), PumpEvent::Nothing);
        rig.says(b"one");
        (rig.turn(), rig.pump.lost().cloned())
    };
    let left = || {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        OwnedFd::from(writer)
    };
    assert_eq!(lost(left(), true), (PumpEvent::Lost, Some(Lost::Gone)));
    assert_eq!(lost(left(), false), (PumpEvent::Nothing, None));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (event, why) = lost(full.into(), true);
    let Some(Lost::Failed(why)) = why else { panic!("{why:?}") };
    assert!(event == PumpEvent::Lost && why.contains("console"), "{why}");
}

#[test]
fn a_guest_that_waited_for_room_is_told_when_it_continues_elsewhere() {
    let identification = |rig: &mut Rig| {
        let mut byte = [0];
        rig.port.lock().unwrap().read(2, &mut byte);
        byte[0] & 0x0f
    };
    let mut saved = Rig::new();
    let _ = saved.port.lock().unwrap().write(1, &[2]);
    saved.says(&vec![b'x'; SOFT_LIMIT]);
    assert_eq!((saved.status() & 0x60, identification(&mut saved)), (0, 1), "it is to wait");
    saved.pump.resumed();
    assert_eq!(identification(&mut saved), 1, "nobody took anything meanwhile");
    let mut restored = Rig::new();
    crate::state::testing::carry(&*saved.port.lock().unwrap(), &mut *restored.port.lock().unwrap()).unwrap();
    // The pending interrupt is read once, as it was by the guest that waits for the next.
    identification(&mut restored);
    assert_eq!(identification(&mut restored), 1);
    restored.pump.resumed();
    assert_eq!(identification(&mut restored), 2);
}

#[test]
fn output_waits_for_memory_of_the_host_and_nothing_spins() {
    let mut rig = Rig::new();
    rig.pump.wait_for_stream();
    let mut stream = rig.attach();
    rig.says(b"hello");
    let refused = sys::cannot_send(|| {
        let mut ready = Vec::new();
        for _ in 0..3 {
            assert_eq!(rig.turn(), PumpEvent::Nothing);
            rig.poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
            // The moment may be over, but the stream, which is ready, is not looked at.
            assert!(ready.iter().all(|one| one.token == Registrar::token(9, KEY_AGAIN)), "{ready:?}");
        }
        rig.pump.finish(A_MOMENT * 3);
        rig.turn();
    });
    if refused.is_none() {
        return;
    }
    let mut bytes = [0; 5];
    assert_eq!(stream.read(&mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // The moment is over, and the reader was not given up.
    let mut ready = Vec::new();
    rig.poller.wait(&mut ready, Some(Duration::from_secs(60))).unwrap();
    assert_eq!(ready.len(), 1);
    rig.turn();
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    rig.poller.wait(&mut ready, Some(A_MOMENT * 2)).unwrap();
    assert!(ready.is_empty(), "nothing ticks any more");
}

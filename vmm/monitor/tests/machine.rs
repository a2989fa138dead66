//! The handle on real machines of a few instructions, in a process of their own and in threads of
//! this one: how they end, and that nothing of them is left. One test, alone in its process, so
//! that counts mean something.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nelly_vmm::config::{CpuCount, Endpoint, MachineConfig, MemorySize, OnReset, VsockConfig};
use nelly_vmm::machine::{ControlError, EndReason, Isolation, Machine, Resources, State};
use support::{SPIN, image, kernel};

/// mov dx, 0x3f8; then each byte: mov al, BYTE; out dx, al
fn say(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// mov al, 0xfe; out 0x64, al; then jmp $
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// mov dx, 0x3f8; mov al, '.'; again: out dx, al; jmp again
const CHATTER: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xeb, 0xfd];
/// mov dx, 0x600; mov al, 0x34; out dx, al; jmp $
const OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe];
/// xor eax, eax; push rax; push rax; lidt [rsp]; ud2: a table without a handler
const TRIPLE: &[u8] = &[0x31, 0xc0, 0x50, 0x50, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];
/// cli; hlt; then jmp back to it
const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// Asserts RTS, then sends back what it receives plus one: mov dx, 0x3fc; mov al, 3; out dx, al;
/// again: mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx; inc al;
/// out dx, al; jmp again
const ECHO: &[u8] = &[
    0x66, 0xba, 0xfc, 0x03, 0xb0, 0x03, 0xee, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66,
    0xba, 0xf8, 0x03, 0xec, 0xfe, 0xc0, 0xee, 0xeb, 0xed,
];

/// Starts every other vCPU in real mode at 0x8000, by messages of the x2APIC, and writes to COM1
/// without end on all of them: mov rax, (mov dx, 0x3f8; mov al, 'x'; again: out dx, al; jmp again);
/// mov [0x8000], rax; mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr; xor edx, edx; mov ecx, 0x830; mov
/// eax, 0xc4500 (INIT); wrmsr; mov eax, 0xc4608 (start-up); wrmsr; mov edx, 0x3f8; mov al, 'x';
/// again: out dx, al; jmp again
const FLOOD: &[u8] = &[
    0x48, 0xb8, 0xba, 0xf8, 0x03, 0xb0, 0x78, 0xee, 0xeb, 0xfd, 0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00,
    0x00, 0xb9, 0x1b, 0x00, 0x00, 0x00, 0x0f, 0x32, 0x0d, 0x00, 0x0c, 0x00, 0x00, 0x0f, 0x30, 0x31, 0xd2,
    0xb9, 0x30, 0x08, 0x00, 0x00, 0xb8, 0x00, 0x45, 0x0c, 0x00, 0x0f, 0x30, 0xb8, 0x08, 0x46, 0x0c, 0x00,
    0x0f, 0x30, 0xba, 0xf8, 0x03, 0x00, 0x00, 0xb0, 0x78, 0xee, 0xeb, 0xfd,
];

fn isolations() -> [Isolation; 2] {
    [Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() }, Isolation::Thread]
}

fn start(isolation: &Isolation, code: &[&[u8]], change: impl FnOnce(&mut MachineConfig)) -> Machine {
    let mut resources = Resources::new();
    let mut config = MachineConfig::new(resources.add(kernel(&code.concat())));
    config.memory_bytes = MemorySize::new(16 << 20).unwrap();
    config.serial = Endpoint::Stream;
    change(&mut config);
    Machine::start(&config, resources, isolation).unwrap()
}

/// Descriptors, threads, mappings of machines, child processes.
fn holdings() -> (usize, usize, usize, String) {
    let count = |path| fs::read_dir(path).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let machines = maps.lines().filter(|line| line.contains("kvm") || line.contains("memfd")).count();
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    (count("/proc/self/fd"), count("/proc/self/task"), machines, children)
}

/// The same, once threads that were joined are out of the list: they may still be on their way.
fn settled(threads: usize) -> (usize, usize, usize, String) {
    for _ in 0..500 {
        if holdings().1 == threads {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    holdings()
}

fn ends(isolation: &Isolation) {
    let panic = say("Kernel panic - not syncing: test\n");
    let (halted, off) = (say("System halted\n"), say("Power off not available: System halted instead\n"));
    let table: [(&[&[u8]], EndReason, &str); 7] = [
        (&[&halted, HALT], EndReason::Halted, "System halted\n"),
        (&[&off, HALT], EndReason::PowerOff, "Power off not available: System halted instead\n"),
        (&[&say("hi\n"), RESET], EndReason::Reset, "hi\n"),
        (&[OFF], EndReason::PowerOff, ""),
        (&[TRIPLE], EndReason::TripleFault, ""),
        (&[&panic, RESET], EndReason::Panic, "Kernel panic - not syncing: test\n"),
        (&[&panic, TRIPLE], EndReason::Panic, "Kernel panic - not syncing: test\n"),
    ];
    for (code, reason, text) in table {
        let log = tempfile::NamedTempFile::new().unwrap();
        let machine = start(isolation, code, |config| {
            config.serial = Endpoint::Log(nelly_vmm::config::FileSource::Path(log.path().to_owned()));
        });
        let outcome = machine.wait();
        assert_eq!(outcome.reason, reason, "{isolation:?} {text:?}");
        assert_eq!(fs::read_to_string(log.path()).unwrap(), text);
        let exits = usize::try_from(outcome.exits.port_write).unwrap();
        assert_eq!(exits, text.len() + usize::from(!code.ends_with(&[TRIPLE]) && !code.ends_with(&[HALT])));
    }
    let machine = start(isolation, &[&say("x"), RESET], |config| config.on_reset = OnReset::Reboot);
    let mut serial = machine.serial().unwrap();
    let mut text = [0; 5];
    serial.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"xxxxx");
    machine.stop().unwrap();
    let outcome = machine.wait();
    assert!(outcome.reason == EndReason::Stopped && outcome.starts >= 5, "{outcome:?}");
}

fn talks_and_pauses(isolation: &Isolation) {
    let machine = start(isolation, &[ECHO], |config| {
        config.cpus = CpuCount::new(3).unwrap();
        config.rng = true;
        config.vsock = Some(VsockConfig::default());
    });
    let mut serial = machine.serial().unwrap();
    let mut ask = |byte: u8| {
        serial.write_all(&[byte])?;
        let mut answer = [0];
        serial.read_exact(&mut answer).map(|()| answer[0])
    };
    for byte in b'a'..=b'z' {
        assert_eq!(ask(byte).unwrap(), byte + 1);
    }
    for _ in 0..20 {
        machine.pause().unwrap();
        assert_eq!(machine.state().unwrap(), State::Paused);
        let exits = machine.exit_counts().unwrap();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(machine.exit_counts().unwrap(), exits, "a paused guest runs");
        let seen = machine.inspect().unwrap();
        let kinds: Vec<_> = seen.devices.iter().map(|device| device.kind.as_str()).collect();
        assert_eq!((kinds, seen.vcpus.len()), (vec!["entropy", "vsock"], 3));
        assert_eq!((seen.state, seen.exits), (State::Paused, exits));
        machine.resume().unwrap();
        assert_eq!(ask(b'0').unwrap(), b'1');
    }
    // The driver is not there, and never will be.
    let pending = machine.vsock().begin_connect(1).unwrap();
    machine.kill();
    let killed = machine.wait().reason;
    assert_eq!(killed, EndReason::Killed);
    assert!(matches!(pending.stream(), Err(ControlError::Ended | ControlError::Refused(_))));
    assert!(machine.stop().is_err());
    assert_eq!(
        ask(b'0').map_err(|error| matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
        )),
        Err(true)
    );
}

fn drops(isolation: &Isolation) {
    for cpus in [1, 4] {
        let machine = start(isolation, &[SPIN], |config| config.cpus = CpuCount::new(cpus).unwrap());
        // Of vCPUs that never leave the guest, too.
        assert_eq!(machine.inspect().unwrap().vcpus.len(), usize::try_from(cpus).unwrap());
        let began = Instant::now();
        drop(machine);
        // Milliseconds; the bound is for a machine that builds something else meanwhile.
        assert!(began.elapsed() < Duration::from_secs(60), "{isolation:?}");
    }
    let machine = start(isolation, &[SPIN], |config| config.time_limit_ms = Some(30));
    assert_eq!(machine.wait().reason, EndReason::TimeLimit);
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(machine.as_fd(), rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut polled, Some(&now)), Ok(1));
}

/// Four vCPUs that write to the serial port without end, and a reader that keeps up, hold up
/// nobody.
fn floods(isolation: &Isolation) {
    let flood = |limit| {
        let machine = start(isolation, &[FLOOD], |config| {
            config.cpus = CpuCount::new(4).unwrap();
            config.time_limit_ms = limit;
        });
        let mut serial = machine.serial().unwrap();
        let reader = std::thread::spawn(move || {
            let mut chunk = vec![0; 1 << 16];
            while serial.read(&mut chunk).is_ok_and(|count| count > 0) {}
        });
        (machine, reader)
    };
    let (machine, reader) = flood(None);
    let written = || machine.inspect().unwrap().vcpus.into_iter().map(|exits| exits.port_write);
    for _ in 0..3 {
        let (before, until) = (written(), Instant::now() + Duration::from_secs(60));
        let more: Vec<_> = before.map(|count| count + 1000).collect();
        while written().zip(&more).any(|(count, more)| count < *more) {
            assert!(Instant::now() < until, "a vCPU does not get to write: {more:?}");
        }
        machine.pause().unwrap();
        machine.resume().unwrap();
    }
    machine.kill();
    assert_eq!(machine.wait().reason, EndReason::Killed);
    reader.join().unwrap();
    let (machine, reader) = flood(Some(100));
    assert_eq!(machine.wait().reason, EndReason::TimeLimit);
    reader.join().unwrap();
}

/// A monitor whose holder is gone ends at once; killed, it leaves no word, and that is told.
fn deaths() {
    let isolation = &isolations()[0];
    let machine = start(isolation, &[SPIN], |_| {});
    let id = machine.process_id().unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &id]).status().unwrap().success());
    let reason = machine.wait().reason;
    assert!(matches!(&reason, EndReason::MonitorDied(how) if how.contains('9')), "{reason:?}");
    assert!(matches!(machine.pause(), Err(ControlError::Ended | ControlError::Talk(_))));

    let (ours, theirs) = nelly_vmm::sys::stream_pair().unwrap();
    let mut monitor = Command::new(env!("CARGO_BIN_EXE_nelly-monitor"))
        .args(["--control", "fd:0"])
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    drop(ours);
    assert!(monitor.wait().unwrap().success());
}

/// A console whose reader is gone ends the machine once the guest writes, and output that is lost
/// is no success. Signals that were ignored at the start stay ignored.
fn readers_that_leave(run: impl Fn(&[&[u8]], &str) -> Command) {
    let left = |code: &[&[u8]], more: &str| {
        let mut monitor = run(code, more).spawn().unwrap();
        monitor.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        monitor.wait().unwrap().code()
    };
    assert_eq!(left(&[CHATTER], ""), Some(141));
    assert_eq!(left(&[&say("."), SPIN], ", \"time_limit_ms\": 2000"), Some(124));
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = run(&[&say("lost"), OFF], "").stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && said.contains("console"), "{output:?}");

    let monitor = run(&[&say("."), SPIN], "");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""]).arg(monitor.get_program());
    command.args(monitor.get_args()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut monitor = command.spawn().unwrap();
    monitor.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let id = monitor.id().to_string();
    for signal in ["-HUP", "-INT", "-TERM"] {
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
    assert_eq!(monitor.wait().unwrap().code(), Some(128 + 15));
}

/// The soft limit of open files, which many sessions have at 1024, is no limit: every connection of
/// the guest is a file.
fn soft_limits(run: impl Fn(&[&[u8]], &str) -> Command) {
    let monitor = run(&[&say("."), SPIN], "");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 64; exec \"$0\" \"$@\""]).arg(monitor.get_program());
    command.args(monitor.get_args()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut monitor = command.spawn().unwrap();
    monitor.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", monitor.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(words[3] == words[4] && words[3] != "64", "{line}");
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}

/// A monitor without room for one more descriptor loses a request, not its machine.
fn exhausts() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    let machine = start(&isolations()[0], &[SPIN], |config| config.vsock = Some(VsockConfig::default()));
    let id = machine.process_id().unwrap();
    let pid = Pid::from_raw(id.cast_signed()).unwrap();
    // What this process has, it inherited.
    let before = getrlimit(Resource::Nofile);
    let limit = |current| {
        prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum: before.maximum }).unwrap();
    };
    limit(Some(0));
    let lost = machine.state();
    assert!(matches!(lost, Err(ControlError::Unanswered)), "{lost:?}");
    // What earlier requests brought is closed by now. Room for one.
    let open: Vec<u64> = fs::read_dir(format!("/proc/{id}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let free: Vec<u64> = (0..).filter(|number| !open.contains(number)).take(2).collect();
    limit(Some(free[1]));
    let refused = machine.vsock().listen(5).err();
    assert!(matches!(&refused, Some(ControlError::Refused(_))), "{refused:?}");
    limit(before.current);
    assert_eq!(machine.state().unwrap(), State::Running);
    drop(machine.vsock().listen(5).unwrap());
    machine.kill();
    assert_eq!(machine.wait().reason, EndReason::Killed);
}

/// Without a holder, as `nelly boot` runs it.
fn alone() {
    let directory = tempfile::tempdir().unwrap();
    let run = |code: &[&[u8]], more: &str| {
        let path = directory.path().join("kernel");
        fs::write(&path, image(&code.concat())).unwrap();
        let config = directory.path().join("config");
        let text = format!(
            "{{\"schema\": 1, \"kernel\": {{\"path\": {path:?}}}, \"serial\": \"stdio\", \"time_limit_ms\": 20000{more}}}"
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly-monitor"));
        command
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let table: [(&[&[u8]], &str, i32, &str); 6] = [
        (&[&say("done"), OFF], "", 0, "done"),
        (&[&say("again"), RESET], "", 0, "again"),
        (&[&say("Kernel panic - not syncing"), RESET], "", 121, "Kernel panic - not syncing"),
        (&[TRIPLE], "", 122, ""),
        (&[SPIN], ", \"cpus\": 0", 125, ""),
        (&[SPIN], ", \"time_limit_ms\": 2000", 124, ""),
    ];
    for (code, more, exit, text) in table {
        // A field given twice counts as its last.
        let output = run(code, more).output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()),
            (Some(exit), text)
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.is_empty(), ![122, 125].contains(&exit), "{said}");
        assert_eq!(said.contains("/kernel does not look like a Linux kernel"), exit == 122, "{said}");
    }
    let mut spinning = run(&[&say("."), SPIN], "").spawn().unwrap();
    // It has run once it has spoken.
    spinning.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let id = spinning.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(spinning.wait().unwrap().code(), Some(128 + 15));
    soft_limits(run);
    readers_that_leave(run);
    for words in [&["--nonsense"][..], &["--config"], &[], &["--config", "/no/such/config"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_nelly-monitor")).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn machines_end_as_told_and_leave_nothing() {
    let round = || {
        for isolation in isolations() {
            ends(&isolation);
            talks_and_pauses(&isolation);
            drops(&isolation);
            floods(&isolation);
        }
        deaths();
        exhausts();
    };
    let threads = holdings().1;
    // The first round warms up what stays for good.
    round();
    let before = settled(threads);
    round();
    let after = settled(threads);
    assert_eq!(after, before, "descriptors, threads, mappings, children");
    alone();
}

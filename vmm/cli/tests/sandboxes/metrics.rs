//! `nelly metrics` beside keepers that are played: an honest one, one that hangs, one that lies.

#[path = "../../../sandbox/src/metrics/strict.rs"]
mod strict;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

/// What a played keeper does.
#[derive(Clone, Copy)]
enum Keeper {
    /// It tells this of its monitor.
    Tells(&'static str),
    /// It takes connections, and says nothing.
    Hangs,
}

const MACHINE: &str = r#"{"schema": 1, "state": "running", "starts": 1, "memory": {"boot_bytes": 1048576, "requested_bytes": 0, "plugged_bytes": 0},
    "exits": {"pio_read": 0, "pio_write": 0, "mmio_read": 0, "mmio_write": 0, "halted": 0, "kicked": 0, "other": 0},
    "vcpus": [{"pio_read": 77, "pio_write": 0, "mmio_read": 0, "mmio_write": 0, "halted": 0, "kicked": 0, "other": 0}],
    "unclaimed_port_accesses": 0, "unclaimed_memory_accesses": 0, "consoles": [], "devices": [
        {"slot": 0, "kind": "block", "name": "root", "status": 15, "needs_reset": false, "interrupts": 1, "ignored_accesses": 0, "faults": [], "queues": [],
         "disk": {"reads": 3, "read_bytes": 1536}, "of_a_later_version": true}]}"#;

/// A length-delimited field of a message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let (mut length, mut varint) = (bytes.len(), Vec::new());
    while length > 0x7f {
        varint.push(0x80 | u8::try_from(length & 0x7f).unwrap());
        length >>= 7;
    }
    varint.push(u8::try_from(length).unwrap());
    [&[number << 3 | 2][..], &varint, bytes].concat()
}

/// Answers the calls of one client.
fn answer(mut client: UnixStream, keeper: Keeper) {
    let mut header = [0; 10];
    while client.read_exact(&mut header).is_ok() {
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        let mut request = vec![0; usize::try_from(length).unwrap()];
        client.read_exact(&mut request).unwrap();
        let Keeper::Tells(shown) = keeper else { continue };
        // A response, whose payload has the inspection, the nanoseconds of field 2, and the bytes
        // of field 3.
        let payload = match request.windows(7).any(|part| part == b"Monitor") {
            true => field(
                2,
                &[field(1, shown.as_bytes()), vec![0x10, 0x80, 0xca, 0xb5, 0xee, 1, 0x18, 1]].concat(),
            ),
            false => Vec::new(),
        };
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let answer = [&length[..], &header[4..8], &[2, 0], &payload].concat();
        // The client may have gone.
        let _gone = client.write_all(&answer);
    }
}

/// A sandbox that runs, with such a keeper.
fn kept(home: &Home, name: &str, digit: char, keeper: Keeper) -> (SandboxDir, SandboxLock) {
    let (dir, lock) = sandbox(&home.sandboxes(), name, digit, Status::Running);
    let place = |name: &str| (name == "NELLY_HOME").then(|| home.0.path().to_owned());
    let runtime = RuntimeDir::make(place, dir.id()).unwrap();
    let listener = UnixListener::bind(runtime.path().join("control")).unwrap();
    let mut state = dir.state().unwrap();
    state.runtime_dir = Some(runtime.path().to_owned());
    state.restarts = 5;
    dir.write_state(&lock, &state).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            std::thread::spawn(move || answer(client, keeper));
        }
    });
    (dir, lock)
}

/// Runs it until every keeper but the one that hangs had the processor in time.
fn metrics(home: &Home, names: &[&str]) -> Output {
    let mut last = None;
    for _ in 0..60 {
        let output = home.run(&[&["metrics"][..], names].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        let late = errors.lines().any(|line| line.contains("does not answer") && !line.contains("hung"));
        if !late {
            return output;
        }
        last = Some(output);
    }
    panic!("{last:?}");
}

fn scraped(output: &Output) -> strict::Scraped {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    strict::parse(&text).unwrap_or_else(|why| panic!("{why}\n{text}"))
}

#[test]
fn one_scrape_tells_of_all_machines_whatever_becomes_of_some() {
    let home = Home::new();
    assert_eq!(home.out(&["metrics"]), "");
    let _web = kept(&home, "web", 'a', Keeper::Tells(MACHINE));
    let alone = metrics(&home, &[]);
    assert!(alone.status.success(), "{alone:?}");
    let told = scraped(&alone);
    let web = [("sandbox", "web"), ("id", &"a".repeat(64))];
    assert_eq!(told.value("nelly_sandbox_up", &web), 1.0);
    assert_eq!(told.value("nelly_sandbox_restarts_total", &web), 5.0);
    assert_eq!(told.value("nelly_sandbox_info", &[("status", "running")]), 1.0);
    assert_eq!(told.value("nelly_monitor_cpu_seconds_total", &web), 0.5);
    assert_eq!(told.value("nelly_vcpu_exits_total", &[("vcpu", "0"), ("kind", "port_read")]), 77.0);
    assert_eq!(told.value("nelly_disk_read_bytes_total", &[("name", "root"), ("device", "block")]), 1536.0);

    let _hung = kept(&home, "hung", 'b', Keeper::Hangs);
    let _lies = kept(&home, "lies", 'c', Keeper::Tells("{\"schema\": "));
    let _half = kept(&home, "half", 'd', Keeper::Tells("{}"));
    drop(sandbox(&home.sandboxes(), "done", 'e', Status::Exited));
    let all = metrics(&home, &[]);
    let (told, errors) = (scraped(&all), String::from_utf8_lossy(&all.stderr));
    assert_eq!(all.status.code(), Some(1));
    assert_eq!(told.value("nelly_vcpu_exits_total", &[("sandbox", "web"), ("kind", "port_read")]), 77.0);
    for (name, why) in [("hung", "does not answer"), ("lies", "cannot read"), ("half", "cannot read")] {
        assert_eq!(told.value("nelly_sandbox_up", &[("sandbox", name)]), 0.0);
        let sentence = errors.lines().find(|line| line.contains(name));
        assert!(sentence.is_some_and(|line| line.contains(why)), "{name}: {errors}");
    }
    assert!(told.all("nelly_sandbox_up", &[("sandbox", "done")]).is_empty(), "it does not run");

    // Those that are named, each once.
    let named = metrics(&home, &["web", "done", "aaaaaaaa", "nobody"]);
    assert_eq!(
        (named.status.code(), scraped(&named).all("nelly_sandbox_up", &[])),
        (Some(1), vec![0.0, 1.0])
    );
    assert!(String::from_utf8_lossy(&named.stderr).contains("nobody"));
}

#[test]
fn what_begins_or_ends_is_named_and_no_error() {
    let home = Home::new();
    let all = home.sandboxes();
    // Their keepers would refuse to tell.
    let _new = sandbox(&all, "new", 'a', Status::Starting);
    let _old = sandbox(&all, "old", 'b', Status::Stopping);
    for names in [&[][..], &["new", "old"]] {
        let output = home.run(&[&["metrics"][..], names].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let told = scraped(&output);
        for (name, status) in [("new", "starting"), ("old", "stopping")] {
            assert_eq!(told.value("nelly_sandbox_info", &[("sandbox", name), ("status", status)]), 1.0);
        }
        assert_eq!(told.samples.len(), 2, "{output:?}");
    }
}

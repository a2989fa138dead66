//! The program without what it does not need, at its whole work.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nelly_net::config::UsernetConfig;

use crate::datagrams::question;
use crate::reach::pings;
use crate::world::{World, is_root, started};

/// What the system says of a process.
fn status(process: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("no {field}: {text}")).to_owned()
}

/// The processes that a process has made.
fn children(process: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// Answers whoever asks, with this address.
fn serves_names(at: &str, answer: [u8; 4]) {
    let socket = UdpSocket::bind(at).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let mut out = buffer[..len].to_vec();
            out[2] |= 0x80;
            out[7] = 1;
            out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            out.extend(answer);
            socket.send_to(&out, from).unwrap();
        }
    });
}

#[test]
fn everything_is_served_without_rights_and_when_resolv_conf_changes() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.has_resolv_conf("nameserver 127.0.0.1\n");
    serves_names("127.0.0.1:53", [192, 0, 2, 71]);
    serves_names("127.0.0.2:53", [192, 0, 2, 72]);
    for at in ["198.51.100.7:7", "[2001:db8:2::7]:7"] {
        let echo = world.there(move || UdpSocket::bind(at).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = echo.recv_from(&mut buffer) {
                echo.send_to(&buffer[..len], from).unwrap();
            }
        });
    }
    let publish = vec!["0:80".parse().unwrap()];
    let (program, mut guest) = started(&UsernetConfig { publish, ..UsernetConfig::default() });
    let ready: serde_json::Value = serde_json::from_str(&program.ready).unwrap();
    let done = ["no_new_privs", "capabilities", "limits", "undumpable", "seccomp"];
    assert_eq!(ready["confinement"], serde_json::json!(done));
    let process = program.child.id();
    let readers = children(process);
    assert_eq!(readers.len(), 1, "one reads resolv.conf");
    for process in [process, readers[0]] {
        assert_eq!((status(process, "Seccomp"), status(process, "NoNewPrivs")), ("2".into(), "1".into()));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(process, set), "0000000000000000", "{set}");
        }
        let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    }

    // Datagrams, pings and streams, both families and both ways.
    let handle = guest.udp(5000);
    for to in ["198.51.100.7:7", "[2001:db8:2::7]:7"] {
        guest.say(handle, b"hello", to);
        assert_eq!(guest.hear(handle).0, b"hello");
    }
    std::fs::write("/proc/thread-self/root/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    for to in ["198.51.100.7", "2001:db8:2::7", "10.0.2.2"] {
        assert!(pings(&mut guest, to, Duration::from_secs(10)), "{to}");
    }
    for at in ["198.51.100.7:80", "[2001:db8:2::7]:80"] {
        let listener = world.there(move || TcpListener::bind(at).unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let handle = guest.dial(at);
        let bytes = vec![9; 3 << 20];
        assert!(guest.exchange(handle, &bytes, true) == bytes, "{at}");
    }
    let refused = guest.dial("198.51.100.7:81");
    assert!(!guest.answered(refused));
    let handle = guest.listen(80);
    let port = ready["published"][0].as_str().unwrap().split(':').nth(1).unwrap().parse::<u16>().unwrap();
    let caller = TcpStream::connect(("127.0.0.1", port)).unwrap();
    guest.until("a caller", |guest| guest.tcp(handle).may_recv().then_some(()));
    drop(caller);

    // Names, of the resolvers of the moment.
    let handle = guest.udp(5002);
    let mut asked = 0;
    let mut ask = |what: &str, done: &dyn Fn(&[u8]) -> bool| {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            asked += 1;
            guest.say(handle, &question(asked, "example.com"), "10.0.2.3:53");
            if done(&guest.hear(handle).0) {
                return;
            }
            assert!(Instant::now() < end, "in vain: {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    ask("the first resolver", &|answer| answer.ends_with(&[192, 0, 2, 71]));
    world.has_resolv_conf("nameserver 127.0.0.2\n");
    ask("the resolver of another file", &|answer| answer.ends_with(&[192, 0, 2, 72]));
    world.has_resolv_conf("");
    ask("none in an empty file", &|answer| answer[3] & 15 == 2);
    world.has_no_resolv_conf();
    ask("none without the file", &|answer| answer[3] & 15 == 2);
    world.has_resolv_conf("# back\nnameserver 127.0.0.1\n");
    ask("the first again", &|answer| answer.ends_with(&[192, 0, 2, 71]));

    drop(guest);
    program.ends_well();
    let gone = Instant::now() + Duration::from_secs(20);
    while std::path::Path::new(&format!("/proc/{}", readers[0])).exists() {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", readers[0])).unwrap_or_default();
        if state.contains(") Z ") {
            break;
        }
        assert!(Instant::now() < gone, "the reader outlives the network");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_network_that_is_not_confined_says_so() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let confine = nelly_net::config::Confine::Off;
    let (program, _guest) = started(&UsernetConfig { confine, ..UsernetConfig::default() });
    let ready: serde_json::Value = serde_json::from_str(&program.ready).unwrap();
    assert_eq!(ready["confinement"], serde_json::json!([]));
    assert_eq!(status(program.child.id(), "Seccomp"), status(std::process::id(), "Seccomp"));
}

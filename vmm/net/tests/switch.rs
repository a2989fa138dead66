//! The program `nelly-switch`, with machines that are played.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nelly_net::link::{HEADER_LEN, Hello, NetHeader, Offloads};
use nelly_net::peers::{Answer, Join, Names, Request, Shown};
use nelly_net::wire::ip::{self, protocol};
use nelly_net::wire::{Mac, Udp, kind, put_ethernet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen,
    recv, send, socket_with,
};

/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(60);

fn socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// A switch that listens below `top`.
fn start(top: &Path, arguments: &[&str]) -> Child {
    std::fs::create_dir_all(top.join("net")).unwrap();
    let listener = socket();
    bind(&listener, &SocketAddrUnix::new(top.join("net/switch")).unwrap()).unwrap();
    listen(&listener, 128).unwrap();
    let (child, said) = start_with(top, arguments, listener, 2);
    assert_eq!(said, "ready\n");
    child
}

/// A switch with this listener, which comes with some of its descriptors; and what it says.
fn start_with(top: &Path, arguments: &[&str], listener: OwnedFd, files: usize) -> (Child, String) {
    let lock = File::options().create(true).append(true).open(top.join("lock")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nelly-switch"));
    command.args(["--network", "dev", "--directory", "net"]).args(arguments);
    let (said, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let all = [File::open(top).unwrap(), File::open(top).unwrap()];
    let borrowed: Vec<_> = all.iter().map(|file| file.as_fd()).take(files).collect();
    nelly_net::sys::write_with_descriptors(&said, b"{}", &borrowed).unwrap();
    said.shutdown(std::net::Shutdown::Write).unwrap();
    command.stdin(listener).stdout(lock).stderr(OwnedFd::from(theirs));
    let child = command.spawn().unwrap();
    drop(command);
    let mut text = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut text).unwrap();
    (child, text)
}

#[test]
fn one_that_cannot_serve_says_why() {
    let top = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(top.path().join("net")).unwrap();
    for (listener, files, why) in [
        (OwnedFd::from(File::open("/dev/null").unwrap()), 2, "cannot wait for who joins: Operation not"),
        (socket(), 1, "1 descriptors came, not a directory and a file to keep"),
    ] {
        let (mut child, said) = start_with(top.path(), &["--serve"], listener, files);
        assert!(said.contains(why), "{said:?}, not {why}");
        assert_eq!(ended(&mut child).code(), Some(125));
    }
}

#[test]
fn what_another_switch_has_put_in_its_place_is_let_be() {
    let top = tempfile::tempdir().unwrap();
    let mut first = start(top.path(), &["--serve"]);
    let one = join(top.path(), 1);
    // Its directory vanishes, and another switch comes to be there.
    std::fs::remove_dir_all(top.path().join("net")).unwrap();
    let mut second = start(top.path(), &["--serve"]);
    let two = join(top.path(), 2);
    drop(one);
    assert!(ended(&mut first).success());
    assert_eq!(show(top.path()).len(), 1);
    drop(two);
    assert!(ended(&mut second).success());
    assert!(!top.path().join("net").exists());
}

fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    until("the end of the switch", || child.try_wait().unwrap())
}

/// A message; empty: the end.
fn hear(file: &OwnedFd) -> Vec<u8> {
    let mut files = [PollFd::new(file, PollFlags::IN)];
    assert_ne!(poll(&mut files, Some(&Timespec::try_from(SOON).unwrap())).unwrap(), 0, "in vain: a message");
    let mut message = vec![0; 70_000];
    let (len, _) = recv(file, &mut *message, RecvFlags::empty()).unwrap_or((0, 0));
    message.truncate(len);
    message
}

fn say(file: &OwnedFd, message: &[u8]) {
    send(file, message, SendFlags::NOSIGNAL).unwrap();
}

fn request(top: &Path, request: &Request) -> OwnedFd {
    let file = socket();
    connect(&file, &SocketAddrUnix::new(top.join("net/switch")).unwrap()).unwrap();
    say(&file, &serde_json::to_vec(request).unwrap());
    file
}

fn machine(n: u8) -> Join {
    Join {
        id: format!("machine{n}"),
        names: vec![format!("m{n}"), "all".to_owned()],
        mac: Mac([0x52, 0x54, 0, 0, 0, n]),
        address4: Ipv4Addr::new(10, 89, 0, n),
        address6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()),
    }
}

/// A machine on the network, whose driver has begun.
fn join(top: &Path, n: u8) -> OwnedFd {
    let file = request(top, &Request::Join(machine(n)));
    let answer = hear(&file);
    assert_eq!(serde_json::from_slice::<Answer>(&answer).unwrap(), Answer::Joined);
    say(&file, &Hello { offloads: Offloads(0x37), mtu: 1500 }.to_bytes());
    file
}

/// Waits for names that fit.
fn names(file: &OwnedFd, fits: impl Fn(&Names) -> bool) {
    until("the names", || Names::parse(&hear(file)).filter(|names| fits(names)));
}

fn show(top: &Path) -> Vec<Shown> {
    let file = request(top, &Request::Show);
    let mut all = Vec::new();
    loop {
        match hear(&file) {
            end if end.is_empty() => return all,
            one => all.push(serde_json::from_slice(&one).unwrap()),
        }
    }
}

/// A frame from one machine to another with `len` bytes.
fn frame(from: u8, to: u8, len: usize) -> Vec<u8> {
    let (from, to) = (machine(from), machine(to));
    let mut message = NetHeader::default().to_bytes().to_vec();
    put_ethernet(&mut message, to.mac, from.mac, kind::IPV4);
    let whole = Udp::LEN + len;
    ip::put_header(&mut message, from.address4.into(), to.address4.into(), protocol::UDP, whole);
    Udp { src: 1, dst: 2 }.put(&mut message, len, 0);
    message.resize(message.len() + len, 7);
    message
}

#[test]
fn machines_hear_each_other_and_their_names_and_nothing_is_left() {
    let top = tempfile::tempdir().unwrap();
    let mut switch = start(top.path(), &["--serve"]);
    let (one, two) = (join(top.path(), 1), join(top.path(), 2));
    names(&one, |names| names.addresses("m2.dev").is_some());
    names(&two, |names| names.addresses("all").is_some_and(|all| all.len() == 4));
    // The driver has begun when its frames come back.
    let sent = frame(1, 2, 100);
    until("a frame", || {
        say(&one, &sent);
        let mut message = vec![0; 2000];
        let (len, _) = recv(&two, &mut *message, RecvFlags::DONTWAIT).ok()?;
        (message[..len] == sent).then_some(())
    });
    say(&two, &frame(1, 2, 100));
    let shown = until("what is counted", || {
        let shown = show(top.path());
        (shown[1].counters.forged == 1).then_some(shown)
    });
    assert_eq!(shown.len(), 2);
    assert_eq!((&shown[0].machine, shown[0].counters.forged), (&machine(1), 0));
    assert!(shown[0].counters.sent > 0 && shown[1].counters.received > 0);
    // What is no request, and addresses that are taken.
    let refused = |join: Join| {
        let answer = hear(&request(top.path(), &Request::Join(join)));
        serde_json::from_slice::<Answer>(&answer).unwrap()
    };
    let Answer::Refused(why) = refused(Join { address4: machine(1).address4, ..machine(3) }) else {
        panic!("refused")
    };
    assert!(why.contains("10.89.0.1") && why.contains("machine m1"), "{why}");
    for nonsense in [&b"x"[..], b"{}", &[0; 60_000]] {
        let file = socket();
        connect(&file, &SocketAddrUnix::new(top.path().join("net/switch")).unwrap()).unwrap();
        say(&file, nonsense);
        assert!(matches!(serde_json::from_slice(&hear(&file)).unwrap(), Answer::Refused(_)));
        assert!(hear(&file).is_empty());
    }
    // The same machine again takes the place of its port, which hears the end.
    let again = join(top.path(), 1);
    until("the end of a port", || hear(&one).is_empty().then_some(()));
    drop(again);
    names(&two, |names| names.addresses("m1").is_none() && names.addresses("m2").is_some());
    drop(two);
    assert!(ended(&mut switch).success());
    assert!(!top.path().join("net").exists());
}

#[test]
fn who_does_not_read_loses_its_own_frames_and_holds_up_nobody() {
    let top = tempfile::tempdir().unwrap();
    let mut switch = start(top.path(), &["--serve"]);
    let [one, two, three] = [1, 2, 3].map(|n| join(top.path(), n));
    names(&three, |names| names.addresses("m3").is_some());
    let big = frame(1, 2, 1400);
    for round in 0..40 {
        // As much as a queue holds, without a reader.
        for _ in 0..100 {
            say(&one, &big);
        }
        let mark = frame(1, 3, 10 + round);
        say(&one, &mark);
        until("a frame for another", || (hear(&three) == mark).then_some(()));
    }
    let shown = show(top.path());
    assert!(shown[1].counters.lost > 0 && shown[1].counters.received > 3000, "{:?}", shown[1].counters);
    assert_eq!((shown[0].counters.lost, shown[2].counters.lost), (0, 0));
    // Afterwards it reads on, and hears new frames.
    let mark = frame(1, 2, 99);
    until("a frame after the loss", || {
        say(&one, &mark);
        let mut message = vec![0; 70_000];
        while let Ok((len, _)) = recv(&two, &mut *message, RecvFlags::DONTWAIT) {
            if message[HEADER_LEN..len] == mark[HEADER_LEN..] {
                return Some(());
            }
        }
        None
    });
    drop((one, two, three));
    assert!(ended(&mut switch).success());
}

#[test]
fn it_is_nobodys_child_and_waits_for_who_is_about_to_join() {
    let top = tempfile::tempdir().unwrap();
    assert!(ended(&mut start(top.path(), &[])).success());
    // Whoever joins holds the lock: until then it does not end.
    let lock = File::options().append(true).open(top.path().join("lock")).unwrap();
    let held = rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive);
    held.unwrap();
    drop(join(top.path(), 1));
    std::thread::sleep(Duration::from_millis(200));
    let two = join(top.path(), 2);
    assert_eq!(show(top.path()).len(), 1);
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
    drop(two);
    until("nothing is left", || (!top.path().join("net").exists()).then_some(()));
}

/// `nelly-usernet` with a guest and a switch that are played; gives both ends.
fn usernet(config: &str) -> (Child, OwnedFd, OwnedFd) {
    let pair = || {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    };
    let ((link, theirs), (switch, port)) = (pair(), pair());
    let (said, telling) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nelly-usernet"));
    command.args(["--link", "fd:0", "--config", "fd:1", "--ready", "fd:1"]);
    let child = command.stdin(theirs).stdout(OwnedFd::from(telling)).spawn().unwrap();
    drop(command);
    nelly_net::sys::write_with_descriptors(&said, config.as_bytes(), &[port.as_fd()]).unwrap();
    said.shutdown(std::net::Shutdown::Write).unwrap();
    let mut ready = String::new();
    std::io::Read::read_to_string(&mut &said, &mut ready).unwrap();
    assert!(ready.contains("published"), "{ready}");
    (child, link, switch)
}

#[test]
fn a_machine_has_its_own_network_and_others_beside_it() {
    let config = r#"{"schema":1,"peers":true,"prefix4":"10.89.0.0/24","gateway4":"10.89.0.1","dns4":"10.89.0.2",
        "guest4":"10.89.0.3","guest_mac":"52:54:00:00:00:03"}"#;
    let (mut child, link, switch) = usernet(config);
    let hello = Hello { offloads: Offloads(0x37), mtu: 1500 }.to_bytes();
    say(&link, &hello);
    assert_eq!(hear(&switch), hello);
    // Router advertisements come by themselves.
    let answer = |fits: &dyn Fn(&[u8]) -> bool| {
        until("an answer for the guest", || Some(hear(&link)).filter(|message| fits(message)))
    };
    say(&link, &frame(3, 4, 100));
    assert_eq!(hear(&switch), frame(3, 4, 100));
    let theirs = frame(4, 3, 1000);
    say(&switch, &theirs);
    answer(&|message| message == theirs);
    // Not for it: it is not passed on. What comes behind it is.
    say(&switch, &frame(4, 5, 10));
    say(&switch, &theirs);
    answer(&|message| {
        assert_ne!(message, frame(4, 5, 10));
        message == theirs
    });
    let entry = ("db".to_owned(), Ipv4Addr::new(10, 89, 0, 4), Ipv6Addr::LOCALHOST);
    say(&switch, &Names::new("dev".into(), [entry]).to_bytes());
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02db\x03dev\x00\x00\x01\x00\x01";
    let mut ask = NetHeader::default().to_bytes().to_vec();
    put_ethernet(&mut ask, nelly_net::core::OWN_MAC, machine(3).mac, kind::IPV4);
    let ends = (Ipv4Addr::new(10, 89, 0, 3).into(), Ipv4Addr::new(10, 89, 0, 2).into());
    ip::put_header(&mut ask, ends.0, ends.1, protocol::UDP, Udp::LEN + question.len());
    Udp { src: 5000, dst: 53 }.put(&mut ask, question.len(), 0);
    ask.extend(question);
    until("a name", || {
        // Until the names have come it is asked of others, who may be none.
        say(&link, &ask);
        let mut files = [PollFd::new(&link, PollFlags::IN)];
        let heard = poll(&mut files, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 })).unwrap() > 0;
        (heard && hear(&link).ends_with(&[10, 89, 0, 4])).then_some(())
    });
    // The switch dies: the machine goes on.
    drop(switch);
    say(&link, &frame(3, 4, 100));
    let mut ping = NetHeader::default().to_bytes().to_vec();
    put_ethernet(&mut ping, nelly_net::core::OWN_MAC, machine(3).mac, kind::IPV4);
    let echo = nelly_net::wire::icmp::Echo { id: 1, seq: 1, data: b"still here" };
    let gateway = Ipv4Addr::new(10, 89, 0, 1).into();
    let echo =
        nelly_net::wire::icmp::finished(ends.0, gateway, nelly_net::wire::icmp::echo(true, false, echo));
    ip::put_header(&mut ping, ends.0, gateway, protocol::ICMP, echo.len());
    ping.extend(echo);
    say(&link, &ping);
    answer(&|message| message.ends_with(b"still here"));
    drop(link);
    assert!(ended(&mut child).success());
}

#[test]
fn words_that_are_none_are_refused() {
    for words in [&[][..], &["--network", "dev"], &["--network", "..", "--directory", "a/b"], &["--what"]] {
        let status = Command::new(env!("CARGO_BIN_EXE_nelly-switch")).args(words).status().unwrap();
        assert_eq!(status.code(), Some(2), "{words:?}");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_nelly-switch")).arg("--help").output().unwrap();
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("--network NAME"));
}

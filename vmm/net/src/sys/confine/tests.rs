//! Each statement is one of a process of its own: this test program, started again.

#![allow(unsafe_code, reason = "it tries what no safe interface has")]

use std::io::Write;
use std::process::{Command, Output};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::{DENIED_EXIT, Role, confine};

const CHILD: &str = "NELLY_TEST_CONFINED";

/// What a process tries once it is confined.
type Attempt = (&'static str, Role, fn());

fn udp() -> std::os::fd::OwnedFd {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap()
}

fn call(number: libc::c_long, arguments: [usize; 3]) {
    // SAFETY: the call is denied before it is made, and its numbers are no addresses.
    let _ = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) {
    // SAFETY: a socket is made or not.
    let _ = unsafe { libc::socket(family, kind, protocol) };
}

fn map(protection: libc::c_int) {
    // SAFETY: the memory is new, and nobody else's.
    let _ = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
}

/// What is denied, with the name that is told of it.
const DENIED: &[Attempt] = &[
    ("openat", Role::Network, || drop(std::fs::File::open("/etc/resolv.conf"))),
    ("openat", Role::Network, || drop(std::fs::File::create("/tmp/nelly-confined"))),
    ("openat", Role::Reader, || drop(std::fs::File::create("/tmp/nelly-confined"))),
    ("openat", Role::Reader, || drop(std::fs::File::options().append(true).open("/dev/null"))),
    ("execve", Role::Network, || call(libc::SYS_execve, [0; 3])),
    ("execveat", Role::Network, || call(libc::SYS_execveat, [0; 3])),
    ("clone", Role::Network, || call(libc::SYS_clone, [0; 3])),
    ("clone3", Role::Network, || call(libc::SYS_clone3, [0; 3])),
    ("ptrace", Role::Network, || call(libc::SYS_ptrace, [0; 3])),
    ("process_vm_readv", Role::Network, || call(libc::SYS_process_vm_readv, [0; 3])),
    ("kill", Role::Network, || call(libc::SYS_kill, [1, 0, 0])),
    ("tgkill", Role::Network, || call(libc::SYS_tgkill, [1, 1, 0])),
    ("ioctl", Role::Network, || call(libc::SYS_ioctl, [0; 3])),
    ("prctl", Role::Network, || call(libc::SYS_prctl, [0; 3])),
    ("bpf", Role::Network, || call(libc::SYS_bpf, [0; 3])),
    ("unshare", Role::Network, || call(libc::SYS_unshare, [0; 3])),
    ("setns", Role::Network, || call(libc::SYS_setns, [0; 3])),
    ("io_uring_setup", Role::Network, || call(libc::SYS_io_uring_setup, [0; 3])),
    ("userfaultfd", Role::Network, || call(libc::SYS_userfaultfd, [0; 3])),
    ("memfd_create", Role::Network, || call(libc::SYS_memfd_create, [0; 3])),
    ("unlinkat", Role::Network, || call(libc::SYS_unlinkat, [0; 3])),
    ("socket", Role::Network, || socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("socket", Role::Network, || socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("socket", Role::Network, || socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("socket", Role::Network, || socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("socket", Role::Network, || socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)),
    ("socket", Role::Network, || socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)),
    ("socket", Role::Reader, || socket(libc::AF_INET, libc::SOCK_DGRAM, 0)),
    ("socketpair", Role::Network, || drop(crate::sys::stream_pair())),
    ("socketpair", Role::Swapping, || drop(crate::sys::message_pair())),
    ("socket", Role::Swapping, || socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("openat", Role::Swapping, || drop(std::fs::File::open("/etc/passwd"))),
    ("openat", Role::Secrets, || drop(std::fs::File::open("/etc/passwd"))),
    ("openat", Role::Secrets, || drop(std::fs::File::create("/tmp/nelly-confined"))),
    ("socket", Role::Secrets, || socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
    ("socket", Role::Secrets, || socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("socketpair", Role::Secrets, || drop(crate::sys::stream_pair())),
    ("connect", Role::Secrets, || call(libc::SYS_connect, [0; 3])),
    ("bind", Role::Secrets, || call(libc::SYS_bind, [0; 3])),
    ("accept4", Role::Secrets, || call(libc::SYS_accept4, [0; 3])),
    ("sendmsg", Role::Secrets, || call(libc::SYS_sendmsg, [0; 3])),
    ("execve", Role::Secrets, || call(libc::SYS_execve, [0; 3])),
    ("clone", Role::Secrets, || call(libc::SYS_clone, [0; 3])),
    ("clone3", Role::Secrets, || call(libc::SYS_clone3, [0; 3])),
    ("ptrace", Role::Secrets, || call(libc::SYS_ptrace, [0; 3])),
    ("process_vm_readv", Role::Secrets, || call(libc::SYS_process_vm_readv, [0; 3])),
    ("kill", Role::Secrets, || call(libc::SYS_kill, [1, 0, 0])),
    ("memfd_create", Role::Secrets, || call(libc::SYS_memfd_create, [0; 3])),
    ("mmap", Role::Secrets, || map(libc::PROT_READ | libc::PROT_EXEC)),
    ("openat", Role::Switch, || drop(std::fs::File::open("/etc/passwd"))),
    ("socket", Role::Switch, || socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)),
    ("socket", Role::Switch, || socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
    ("connect", Role::Switch, || call(libc::SYS_connect, [0; 3])),
    ("execve", Role::Switch, || call(libc::SYS_execve, [0; 3])),
    ("clone3", Role::Switch, || call(libc::SYS_clone3, [0; 3])),
    ("kill", Role::Switch, || call(libc::SYS_kill, [1, 0, 0])),
    ("renameat2", Role::Switch, || call(libc::SYS_renameat2, [0; 3])),
    ("getsockopt", Role::Switch, || call(libc::SYS_getsockopt, [0, 1, 4])),
    ("bind", Role::Network, || drop(std::net::UdpSocket::bind("127.0.0.1:0"))),
    ("bind", Role::Network, || drop(std::net::UdpSocket::bind("[::1]:0"))),
    ("setsockopt", Role::Network, || call(libc::SYS_setsockopt, [0, 1, 25])),
    ("setsockopt", Role::Network, || call(libc::SYS_setsockopt, [0, 1, 2])),
    ("listen", Role::Network, || call(libc::SYS_listen, [0, 1, 0])),
    ("mmap", Role::Network, || map(libc::PROT_READ | libc::PROT_EXEC)),
    ("number", Role::Network, || call(0x4000_0000 | libc::SYS_getpid, [0; 3])),
];

/// What is part of the work.
const ALLOWED: &[Attempt] = &[
    ("sockets", Role::Network, || {
        for (family, kind, protocol) in [
            (AddressFamily::INET, SocketType::STREAM, None),
            (AddressFamily::INET6, SocketType::STREAM, None),
            (AddressFamily::INET6, SocketType::DGRAM, None),
            (AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)),
            (AddressFamily::INET6, SocketType::DGRAM, Some(ipproto::ICMPV6)),
        ] {
            // A host may refuse some of them.
            let _ = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol);
        }
        drop(udp());
        assert!(nix::ifaddrs::getifaddrs().is_ok());
    }),
    ("a pair", Role::Swapping, || {
        drop(crate::sys::stream_pair().unwrap());
        drop(udp());
    }),
    ("a time and a random number", Role::Secrets, || {
        let _ = (std::time::SystemTime::now(), std::collections::hash_map::RandomState::new());
        map(libc::PROT_READ | libc::PROT_WRITE);
        drop(vec![1_u8; 8 << 20]);
    }),
    ("memory", Role::Network, || {
        map(libc::PROT_READ | libc::PROT_WRITE);
        for size in [1 << 10, 1 << 20, 64 << 20] {
            let mut bytes = vec![1_u8; size];
            bytes.resize(2 * size, 2);
        }
    }),
    ("a file", Role::Reader, || {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(rustix::fs::CWD, "/etc/passwd", flags, rustix::fs::Mode::empty()).unwrap();
        rustix::fs::fstat(&file).unwrap();
        assert!(rustix::io::read(&file, &mut [0; 16]).unwrap() > 0);
    }),
];

fn of(place: &str) -> &'static Attempt {
    let (list, place) = place.split_once(' ').unwrap();
    let list = if list == "denied" { DENIED } else { ALLOWED };
    &list[place.parse::<usize>().unwrap()]
}

/// What a process does that the tests start.
fn confined_child(place: &str) -> ! {
    let (_, role, attempt) = of(place);
    let (status, stderr) = (std::fs::File::open("/proc/thread-self/status").unwrap(), std::io::stderr());
    confine(*role, &[std::os::fd::AsFd::as_fd(&stderr)]).unwrap();
    let mut buffer = vec![0; 16 << 10];
    let len = rustix::io::read(&status, &mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
    attempt();
    let _ = std::io::stderr().write_all(format!("{text}survived\n").as_bytes());
    // SAFETY: it ends the process.
    unsafe { libc::_exit(0) }
}

fn run(place: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "--test-threads=1",
            "sys::confine::tests::a_denied_call_ends_the_process_and_is_named",
        ])
        .env(CHILD, place)
        .output()
        .unwrap()
}

#[test]
fn a_denied_call_ends_the_process_and_is_named() {
    if let Ok(place) = std::env::var(CHILD) {
        confined_child(&place);
    }
    for (place, (name, role, _)) in DENIED.iter().enumerate() {
        let output = run(&format!("denied {place}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(DENIED_EXIT.into()), "{place} {name} {role:?}: {said}");
        assert!(said.contains(&format!("ended: the system call {name} (")), "{name}: {said}");
    }
}

#[test]
fn the_work_of_each_role_is_allowed_and_its_rights_are_gone() {
    for (place, (name, ..)) in ALLOWED.iter().enumerate() {
        let output = run(&format!("allowed {place}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("survived"), "{name}: {said}");
        for line in
            ["Seccomp:\t2", "NoNewPrivs:\t1", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"]
        {
            assert!(said.contains(line), "{line}: {said}");
        }
        let bound = "CapBnd:\t0000000000000000";
        assert!(said.contains(bound) || !rustix::process::geteuid().is_root(), "{said}");
    }
}

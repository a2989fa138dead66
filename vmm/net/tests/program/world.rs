//! A host and an Internet: two network namespaces with a cable between them.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use nelly_net::config::UsernetConfig;
use nelly_net::holder::Holder;
use nelly_net::sys::write_with_descriptors;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::guest::Guest;

type Job = Box<dyn FnOnce() + Send>;

/// The Internet: what it runs has its addresses, 192.0.2.1, 198.51.100.7, 2001:db8:1::1 and
/// 2001:db8:2::7.
/// The host has 192.0.2.2 and 2001:db8:1::2.
pub(crate) struct World {
    jobs: mpsc::Sender<Job>,
    /// `/etc` of the host is its own.
    own_etc: std::cell::Cell<bool>,
}

/// Whether this process may make network namespaces. Only root can, and only root's runs count.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not run: only root may make network namespaces");
    }
    root
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

impl World {
    /// Makes both. This thread becomes the host.
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            for job in inbox {
                job();
            }
        });
        let world = Self { jobs, own_etc: false.into() };
        ip("link set lo up");
        ip("link add v0 type veth peer name v1");
        ip(&format!("link set v1 netns {}", told.recv().unwrap()));
        ip("link set v0 up");
        ip("addr add 192.0.2.2/24 dev v0");
        ip("-6 addr add 2001:db8:1::2/64 dev v0 nodad");
        world.there(|| {
            ip("link set lo up");
            ip("link set v1 up");
            ip("addr add 192.0.2.1/24 dev v1");
            ip("addr add 198.51.100.7/32 dev lo");
            ip("-6 addr add 2001:db8:1::1/64 dev v1 nodad");
            ip("-6 addr add 2001:db8:2::7/128 dev lo nodad");
        });
        ip("route add default via 192.0.2.1");
        ip("-6 route add default via 2001:db8:1::1");
        world
    }

    /// Gives the host an `/etc` of its own, and this `resolv.conf` in it, in place of another as
    /// most programs replace it.
    pub(crate) fn has_resolv_conf(&self, text: &str) {
        if !self.own_etc.replace(true) {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("etc"), "/etc", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        }
        std::fs::write("/etc/resolv.conf.new", text).unwrap();
        std::fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf").unwrap();
    }

    /// Takes it away.
    pub(crate) fn has_no_resolv_conf(&self) {
        assert!(self.own_etc.get());
        std::fs::remove_file("/etc/resolv.conf").unwrap();
    }

    /// Runs something in the Internet. Sockets that it makes stay there.
    pub(crate) fn there<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || tell.send(job()).unwrap())).unwrap();
        told.recv().unwrap()
    }
}

/// The program that runs.
pub(crate) struct Program {
    pub(crate) child: Child,
    /// What it said when it was ready.
    pub(crate) ready: String,
}

fn passed(file: &OwnedFd) -> OwnedFd {
    // Without close-on-exec: the program is to have it.
    rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
    file.try_clone().unwrap()
}

/// Starts the program; gives what it said instead if it does not begin.
pub(crate) fn start(config: &str) -> Result<(Program, OwnedFd), String> {
    let (config_out, mut config_in) = std::io::pipe().unwrap();
    config_in.write_all(config.as_bytes()).unwrap();
    drop(config_in);
    start_by(OwnedFd::from(config_out), None)
}

/// Starts it with a soft and a hard limit of open files, or those of the tests.
fn start_by(config_out: OwnedFd, files: Option<[u64; 2]>) -> Result<(Program, OwnedFd), String> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let (ready_out, ready_in) = std::io::pipe().unwrap();
    let ready_in = OwnedFd::from(ready_in);
    for file in [&theirs, &config_out, &ready_in] {
        drop(passed(file));
    }
    let program = env!("CARGO_BIN_EXE_nelly-usernet");
    let mut command = match files {
        None => Command::new(program),
        Some(limits) => {
            let mut command = Command::new("sh");
            command.args(["-c", r#"ulimit -S -n $1 && ulimit -H -n $2 && shift 2 && exec "$@""#, "sh"]);
            command.args(limits.map(|limit| limit.to_string())).arg(program);
            command
        }
    };
    let mut child = command
        .args(["--config", &format!("fd:{}", config_out.as_raw_fd())])
        .args(["--link", &format!("fd:{}", theirs.as_raw_fd())])
        .args(["--ready", &format!("fd:{}", ready_in.as_raw_fd())])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((theirs, config_out, ready_in));
    let mut ready = String::new();
    BufReader::new(ready_out).read_line(&mut ready).unwrap();
    if ready.is_empty() {
        let output = child.wait_with_output().unwrap();
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    child.stderr = None;
    Ok((Program { child, ready }, ours))
}

/// The program with this configuration, and a guest of it.
pub(crate) fn started(config: &UsernetConfig) -> (Program, Guest) {
    let (program, link) = start(&serde_json::to_string(config).unwrap()).unwrap();
    let mut guest = Guest::new(link, 1500);
    guest.pass(std::time::Duration::from_millis(50));
    (program, guest)
}

/// The same with hosts of secrets, and the end of whoever has these.
pub(crate) fn swapping(config: &UsernetConfig) -> (Program, Guest, OwnedFd) {
    let (secrets, theirs) = nelly_net::sys::message_pair().unwrap();
    let (ours, configured) = UnixStream::pair().unwrap();
    write_with_descriptors(&ours, &serde_json::to_vec(config).unwrap(), &[theirs.as_fd()]).unwrap();
    drop((ours, theirs));
    let (program, link) = start_by(configured.into(), None).unwrap();
    (program, Guest::new(link, 1500), secrets)
}

/// The same, and the end of whoever holds the machine.
pub(crate) fn held(config: &UsernetConfig) -> (Program, Guest, Holder) {
    let config = UsernetConfig { control: true, ..config.clone() };
    let (holder, control) = Holder::pair().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let text = serde_json::to_vec(&config).unwrap();
    write_with_descriptors(&ours, &text, &[control.as_fd()]).unwrap();
    drop((ours, control));
    let (program, link) = start_by(theirs.into(), None).unwrap();
    (program, Guest::new(link, 1500), holder)
}

/// The program with a soft and a hard limit of open files, its link, and who reads its log to the
/// end: lines that nobody reads are lost.
pub(crate) fn limited(config: &UsernetConfig, files: [u64; 2]) -> (Program, OwnedFd, JoinHandle<String>) {
    let (log, theirs_of_log) = std::io::pipe().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let text = serde_json::to_vec(config).unwrap();
    write_with_descriptors(&ours, &text, &[theirs_of_log.as_fd()]).unwrap();
    drop(ours);
    drop(theirs_of_log);
    let log = std::thread::spawn(move || std::io::read_to_string(log).unwrap());
    let (program, link) = start_by(theirs.into(), Some(files)).unwrap();
    (program, link, log)
}

/// Has the tests open as many files as they may; says how many.
pub(crate) fn raise_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.unwrap_or(u64::MAX)
}

impl Program {
    /// How many files it has open.
    pub(crate) fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Memory in bytes that it and its reader of resolv.conf have to themselves.
    pub(crate) fn memory(&self) -> u64 {
        let own = self.child.id().to_string();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
        let all = children.split_whitespace().chain([own.as_str()]);
        all.map(|process| {
            let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
        })
        .sum()
    }

    /// The processor time it has used, in clock ticks.
    pub(crate) fn ticks(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let words: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap()
    }

    /// Waits for its end, which is to come because the link has ended.
    pub(crate) fn ends_well(mut self) {
        for _ in 0..100 {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("the program goes on without its link");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

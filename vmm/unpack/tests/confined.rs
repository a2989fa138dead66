//! What an unpacker that a hostile image has taken over may do. Each attempt is one of a process of
//! its own: this test program, started again, which confines itself as the unpacker does.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "it tries what no safe interface has")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use nelly_image::Order;
use nelly_unpack::confine::confine;
use rustix::process::{Pid, Signal, getppid, kill_process};

/// Says in a child which attempt it is, and where the files are.
const CHILD: &str = "NELLY_TEST_UNPACKER";

/// The SHA-256 digest of an `x`.
const OF_X: &str = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";

/// An attempt: its name, what becomes of it, and how it is made in a directory that holds `image`,
/// the source, `cache`, and `other`, which the order does not name.
type Attempt = (&'static str, Ends, fn(&Path) -> io::Result<()>);

#[derive(Clone, Copy, Debug)]
enum Ends {
    /// It works.
    Well,
    /// Refused, and the process goes on.
    Refused,
    /// As if the system did not know the call.
    Unknown,
    /// The process ends, and says that this call was it.
    With(&'static str),
}

/// Asked before the attempt.
static CALLER: OnceLock<Pid> = OnceLock::new();

fn caller() -> Pid {
    *CALLER.get().unwrap()
}

fn call(number: libc::c_long, arguments: [usize; 3]) -> io::Result<()> {
    // SAFETY: the call is denied before it is made; its numbers are no addresses of anything.
    match unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

const ATTEMPTS: &[Attempt] = &[
    ("read the image", Ends::Well, |place| fs::read(place.join("image/index.json")).map(drop)),
    ("read what the image's files lead to", Ends::Well, |place| {
        fs::read(place.join("image/blobs/sha256").join(OF_X)).map(drop)
    }),
    ("write to the cache", Ends::Well, |place| File::create_new(place.join("cache/new"))?.write_all(b"x")),
    ("rename in the cache", Ends::Well, |place| {
        fs::create_dir(place.join("cache/directory"))?;
        File::create_new(place.join("cache/from"))?;
        fs::rename(place.join("cache/from"), place.join("cache/directory/to"))?;
        fs::remove_file(place.join("cache/directory/to"))
    }),
    ("make a thread", Ends::Well, |_| {
        std::thread::Builder::new().spawn(|| ())?.join().map_err(|_| io::ErrorKind::Other.into())
    }),
    ("write to the image", Ends::Refused, |place| {
        File::options().write(true).open(place.join("image/index.json")).map(drop)
    }),
    ("cut the image", Ends::With("openat"), |place| File::create(place.join("image/index.json")).map(drop)),
    ("cut what may be read", Ends::With("open"), |place| {
        let flags = rustix::fs::OFlags::TRUNC | rustix::fs::OFlags::CLOEXEC;
        Ok(rustix::fs::open(place.join("image/index.json"), flags, rustix::fs::Mode::empty()).map(drop)?)
    }),
    ("read what a link of the image's maker leads to", Ends::Refused, |place| {
        fs::read(place.join("image/secret")).map(drop)
    }),
    ("read what is called by another digest", Ends::Refused, |place| {
        fs::read(place.join("image/blobs/sha256").join("0".repeat(64))).map(drop)
    }),
    ("remove the image", Ends::Refused, |place| fs::remove_file(place.join("image/index.json"))),
    ("add to the image", Ends::Refused, |place| File::create_new(place.join("image/new")).map(drop)),
    ("read another file", Ends::Refused, |place| fs::read(place.join("other/secret")).map(drop)),
    ("list another directory", Ends::Refused, |place| fs::read_dir(place.join("other")).map(drop)),
    ("write another file", Ends::Refused, |place| File::create_new(place.join("other/new")).map(drop)),
    ("make a link to another file", Ends::Refused, |place| {
        fs::hard_link(place.join("other/secret"), place.join("cache/secret"))
    }),
    ("move another file", Ends::Refused, |place| {
        fs::rename(place.join("other/secret"), place.join("cache/secret"))
    }),
    ("read /etc/passwd", Ends::Refused, |_| fs::read("/etc/passwd").map(drop)),
    ("read the memory of its caller", Ends::Refused, |_| {
        File::open(format!("/proc/{}/mem", caller().as_raw_nonzero())).map(drop)
    }),
    ("make a device", Ends::With("mknodat"), |_| call(libc::SYS_mknodat, [0; 3])),
    ("run a program", Ends::With("execve"), |_| call(libc::SYS_execve, [0; 3])),
    ("run an open program", Ends::With("execveat"), |_| call(libc::SYS_execveat, [0; 3])),
    ("make a process", Ends::With("clone"), |_| call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0])),
    ("make a process by clone3", Ends::Unknown, |_| call(libc::SYS_clone3, [0; 3])),
    ("a socket of the Internet", Ends::With("socket"), |_| {
        std::net::TcpListener::bind("127.0.0.1:0").map(drop)
    }),
    ("a socket of the host", Ends::With("socket"), |place| {
        std::os::unix::net::UnixListener::bind(place.join("cache/socket")).map(drop)
    }),
    ("end its caller", Ends::With("kill"), |_| Ok(kill_process(caller(), Signal::TERM)?)),
    ("end a thread of its caller", Ends::With("tgkill"), |_| call(libc::SYS_tgkill, [1, 1, 15])),
    ("trace", Ends::With("ptrace"), |_| call(libc::SYS_ptrace, [0; 3])),
    ("read another process", Ends::With("process_vm_readv"), |_| call(libc::SYS_process_vm_readv, [0; 3])),
    ("mount", Ends::With("mount"), |_| call(libc::SYS_mount, [0; 3])),
    ("namespaces", Ends::With("unshare"), |_| call(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0, 0])),
    ("io_uring", Ends::With("io_uring_setup"), |_| call(libc::SYS_io_uring_setup, [0; 3])),
    ("bpf", Ends::With("bpf"), |_| call(libc::SYS_bpf, [0; 3])),
    ("userfaultfd", Ends::With("userfaultfd"), |_| call(libc::SYS_userfaultfd, [0; 3])),
    ("perf", Ends::With("perf_event_open"), |_| call(libc::SYS_perf_event_open, [0; 3])),
    ("keys", Ends::With("keyctl"), |_| call(libc::SYS_keyctl, [0; 3])),
    ("another mode of a file", Ends::With("fchmod"), |_| call(libc::SYS_fchmod, [0, 0o444, 0])),
    ("requests of devices", Ends::With("ioctl"), |_| call(libc::SYS_ioctl, [0, 0x5412, 0])),
    ("be looked into again", Ends::With("prctl"), |_| {
        call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1, 0])
    }),
    ("memory that is a program", Ends::With("mmap"), |_| {
        // SAFETY: the memory would be new.
        let made = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if made == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
];

/// The order to unpack the layout `image` into `cache`.
fn order(place: &Path) -> Order {
    let bytes = |name: &str| serde_json::json!(place.join(name).as_os_str().as_bytes());
    let limits = nelly_image::Limits::default();
    let line = serde_json::json!({
        "version": 1, "wanted": { "Layout": [bytes("image"), null] },
        "cache": bytes("cache"), "local": null, "builtin": null, "limits": limits,
    });
    Order::read(format!("{line}\n").as_bytes()).unwrap()
}

fn child(word: &str) {
    let (number, place) = word.split_once(' ').unwrap();
    let (name, _, attempt) = &ATTEMPTS[number.parse::<usize>().unwrap()];
    CALLER.set(getppid().unwrap()).unwrap();
    let done = confine(&order(Path::new(place))).unwrap();
    assert!(done.contains(&"seccomp") && done.contains(&"landlock"), "{done:?}");
    let said = match attempt(Path::new(place)) {
        Ok(()) => "well".to_owned(),
        Err(error) => format!("refused: {error}"),
    };
    io::stdout().write_all(format!("{name}: {said}\n").as_bytes()).unwrap();
    // Without the harness, which would do more.
    std::process::exit(0)
}

fn attempt(number: usize) -> Output {
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("image/blobs/sha256");
    fs::create_dir_all(&image).unwrap();
    fs::create_dir(place.path().join("cache")).unwrap();
    fs::create_dir(place.path().join("other")).unwrap();
    fs::create_dir(place.path().join("elsewhere")).unwrap();
    fs::write(place.path().join("image/index.json"), "{}").unwrap();
    fs::write(place.path().join("elsewhere/blob"), "x").unwrap();
    fs::write(place.path().join("other/secret"), "x").unwrap();
    let link = |from: &str, to: &Path| std::os::unix::fs::symlink(place.path().join(from), to).unwrap();
    link("elsewhere/blob", &image.join(OF_X));
    link("other/secret", &image.join("0".repeat(64)));
    link("other/secret", &place.path().join("image/secret"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_unpacker_that_is_taken_over_owns_next_to_nothing", "--nocapture"])
        .env(CHILD, format!("{number} {}", place.path().display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(place.path().join("other/secret").exists() && !place.path().join("other/new").exists());
    assert_eq!(fs::read(place.path().join("image/index.json")).unwrap(), b"{}");
    output
}

#[test]
fn an_unpacker_that_is_taken_over_owns_next_to_nothing() {
    if let Ok(word) = std::env::var(CHILD) {
        return child(&word);
    }
    for (number, (name, ends, _)) in ATTEMPTS.iter().enumerate() {
        let output = attempt(number);
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        let seen = format!("{name}: {}: {said} {complained}", output.status);
        match ends {
            Ends::Well => assert!(said.contains(": well"), "{seen}"),
            Ends::Unknown => assert!(said.contains("os error 38"), "{seen}"),
            Ends::Refused => assert!(said.contains(": refused"), "{seen}"),
            Ends::With(call) => {
                assert_eq!(output.status.code(), Some(159), "{seen}");
                assert!(
                    complained.contains(&format!("nelly-unpack: ended: the system call {call}")),
                    "{seen}"
                );
            }
        }
    }
}

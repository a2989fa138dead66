//! What the processes that read a disk image, or an archive that is loaded, may do when a hostile
//! one has taken them over. Each attempt is one of a process of its own: this test program, started
//! again with the image and a file to write to, as those processes have them.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "it tries what no safe interface has")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Output, Stdio};

use nelly_unpack::confine::{confine_to_archive, confine_to_images};
use rustix::process::{Pid, Signal, getppid, kill_process};

/// Says in a child which attempt it is.
const CHILD: &str = "NELLY_TEST_READER";

/// Which of the two it is.
const IMAGE: &str = "image";
const ARCHIVE: &str = "archive";

/// Most bytes that its output gets.
const MOST: u64 = 10_000;

/// What it has open.
struct Open {
    image: File,
    output: File,
    caller: Pid,
}

/// An attempt: its name, what becomes of it, and how it is made.
type Attempt = (&'static str, Ends, fn(&Open) -> io::Result<()>);

#[derive(Clone, Copy, Debug)]
enum Ends {
    /// It works.
    Well,
    /// Refused, and the process goes on.
    Refused,
    /// The process ends, and says that this call was it.
    With(&'static str),
    /// The process is ended by this signal.
    By(i32),
}

fn call(number: libc::c_long, arguments: [usize; 3]) -> io::Result<()> {
    // SAFETY: the call is denied before it is made; its numbers are no addresses of anything.
    match unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

const ATTEMPTS: &[Attempt] = &[
    ("read the image", Ends::Well, |open| open.image.read_exact_at(&mut [0; 5], 0)),
    ("write to the output", Ends::Well, |open| (&open.output).write_all(&[1; 10_000])),
    ("write too much to the output", Ends::By(libc::SIGXFSZ), |open| {
        (&open.output).write_all(&[1; 10_001])?;
        (&open.output).write_all(&[1; 10_001])
    }),
    ("make the output too large", Ends::By(libc::SIGXFSZ), |open| open.output.set_len(MOST + 1)),
    ("write to the image", Ends::Refused, |open| open.image.write_all_at(&[1], 0)),
    (LOCK, Ends::Well, |open| open.image.try_lock_shared().map_err(|_| io::ErrorKind::Other.into())),
    ("open the image again", Ends::With("openat"), |open| {
        use std::os::fd::AsRawFd;
        File::options().write(true).open(format!("/proc/self/fd/{}", open.image.as_raw_fd())).map(drop)
    }),
    ("read /etc/passwd", Ends::With("openat"), |_| fs::read("/etc/passwd").map(drop)),
    ("read the memory of its caller", Ends::With("openat"), |open| {
        File::open(format!("/proc/{}/mem", open.caller.as_raw_nonzero())).map(drop)
    }),
    ("list a directory", Ends::With("openat"), |_| fs::read_dir("/").map(drop)),
    ("make a directory", Ends::With("mkdirat"), |_| call(libc::SYS_mkdirat, [0; 3])),
    ("remove a file", Ends::With("unlinkat"), |_| call(libc::SYS_unlinkat, [0; 3])),
    ("rename a file", Ends::With("renameat2"), |_| call(libc::SYS_renameat2, [0; 3])),
    ("another mode of a file", Ends::With("fchmod"), |_| call(libc::SYS_fchmod, [0, 0o444, 0])),
    ("requests of devices", Ends::With("ioctl"), |_| call(libc::SYS_ioctl, [0, 0x5412, 0])),
    ("a socket of the Internet", Ends::With("socket"), |_| {
        std::net::TcpListener::bind("127.0.0.1:0").map(drop)
    }),
    ("connect", Ends::With("connect"), |_| call(libc::SYS_connect, [0; 3])),
    ("send a file to its caller", Ends::With("sendmsg"), |_| call(libc::SYS_sendmsg, [0; 3])),
    ("receive a file", Ends::With("number"), |_| call(libc::SYS_recvmsg, [0; 3])),
    ("run a program", Ends::With("execve"), |_| call(libc::SYS_execve, [0; 3])),
    ("make a thread", Ends::With("clone"), |_| {
        const THREAD: usize = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as usize;
        call(libc::SYS_clone, [THREAD, 0, 0])
    }),
    ("make a process", Ends::With("clone"), |_| call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0])),
    ("end its caller", Ends::With("kill"), |open| Ok(kill_process(open.caller, Signal::TERM)?)),
    ("trace", Ends::With("ptrace"), |_| call(libc::SYS_ptrace, [0; 3])),
    ("read another process", Ends::With("process_vm_readv"), |_| call(libc::SYS_process_vm_readv, [0; 3])),
    ("mount", Ends::With("mount"), |_| call(libc::SYS_mount, [0; 3])),
    ("namespaces", Ends::With("unshare"), |_| call(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0, 0])),
    ("io_uring", Ends::With("io_uring_setup"), |_| call(libc::SYS_io_uring_setup, [0; 3])),
    ("bpf", Ends::With("bpf"), |_| call(libc::SYS_bpf, [0; 3])),
    ("userfaultfd", Ends::With("userfaultfd"), |_| call(libc::SYS_userfaultfd, [0; 3])),
    ("perf", Ends::With("perf_event_open"), |_| call(libc::SYS_perf_event_open, [0; 3])),
    ("keys", Ends::With("keyctl"), |_| call(libc::SYS_keyctl, [0; 3])),
    ("other limits", Ends::With("prlimit64"), |_| call(libc::SYS_prlimit64, [0; 3])),
    ("memory that is a program", Ends::With("mmap"), |_| {
        // SAFETY: the memory would be new.
        let made = unsafe {
            let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, anonymous, -1, 0)
        };
        if made == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
    ("more memory than any image needs", Ends::Refused, |_| {
        let mut much = Vec::<u8>::new();
        much.try_reserve(2 << 30).map_err(|_| io::ErrorKind::OutOfMemory.into())
    }),
];

/// What reads an archive has nobody's locks to look after.
const LOCK: &str = "look after the image's lock";

fn child(word: &str) {
    let (number, kind) = word.split_once(' ').unwrap();
    let (name, _, attempt) = &ATTEMPTS[number.parse::<usize>().unwrap()];
    // The image is standard input; the output is opened by its name, before.
    let image = File::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let output = File::create(std::env::var_os("NELLY_TEST_OUTPUT").unwrap()).unwrap();
    let open = Open { image, output, caller: getppid().unwrap() };
    let confine = if kind == IMAGE { confine_to_images } else { confine_to_archive };
    let done = confine(MOST).unwrap();
    assert!(done.contains(&"seccomp") && done.contains(&"landlock"), "{done:?}");
    let said = match attempt(&open) {
        Ok(()) => "well".to_owned(),
        Err(error) => format!("refused: {error}"),
    };
    io::stdout().write_all(format!("{name}: {said}\n").as_bytes()).unwrap();
    // Without the harness, which would do more.
    std::process::exit(0)
}

fn attempt(number: usize, kind: &str, test: &str) -> Output {
    let place = tempfile::tempdir().unwrap();
    let (image, output) = (place.path().join("image"), place.path().join("output"));
    fs::write(&image, "image").unwrap();
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, format!("{number} {kind}"))
        .env("NELLY_TEST_OUTPUT", &output)
        .stdin(Stdio::from(File::open(&image).unwrap()))
        .output()
        .unwrap();
    assert_eq!(fs::read(&image).unwrap(), b"image");
    let mut written = Vec::new();
    File::open(&output).unwrap().read_to_end(&mut written).unwrap();
    assert!(written.len() as u64 <= MOST, "{} bytes", written.len());
    ended
}

/// Tries all, in processes that are confined as those of this kind, which call themselves `name`.
fn try_all(kind: &str, program: &str, test: &str) {
    use std::os::unix::process::ExitStatusExt;
    if let Ok(word) = std::env::var(CHILD) {
        return child(&word);
    }
    for (number, (name, ends, _)) in ATTEMPTS.iter().enumerate() {
        let output = attempt(number, kind, test);
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        let seen = format!("{name}: {}: {said} {complained}", output.status);
        let ends = if *name == LOCK && kind == ARCHIVE { &Ends::With("number") } else { ends };
        match ends {
            Ends::Well => assert!(said.contains(": well"), "{seen}"),
            Ends::Refused => assert!(said.contains(": refused"), "{seen}"),
            Ends::By(signal) => assert_eq!(output.status.signal(), Some(*signal), "{seen}"),
            Ends::With(call) => {
                assert_eq!(output.status.code(), Some(159), "{seen}");
                assert!(complained.contains(&format!("{program}: ended: the system call {call}")), "{seen}");
            }
        }
    }
}

#[test]
fn a_reader_of_images_that_is_taken_over_owns_next_to_nothing() {
    try_all(IMAGE, "nelly", "a_reader_of_images_that_is_taken_over_owns_next_to_nothing");
}

#[test]
fn a_reader_of_archives_that_is_taken_over_owns_next_to_nothing() {
    try_all(ARCHIVE, "nelly-unpack", "a_reader_of_archives_that_is_taken_over_owns_next_to_nothing");
}

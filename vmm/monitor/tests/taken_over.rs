//! What the threads of a running monitor can do when somebody else decides what they do next: the
//! test takes each of them over as a debugger does, and has it make the system calls of an exploit.
//! Then a disk is attached, and it is all tried again. The matrix of kinds of threads is in
//! `exploited.rs`; here are the threads of real machines, with what they have open.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, unsafe_code, reason = "a test that tries what it must not")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use nelly_vmm::config::{DiskConfig, DiskId, FileSource, MachineConfig, ShareConfig, ShareTag};
use nelly_vmm::machine::{Isolation, Machine, Resources};
use support::{SPIN, kernel, watchdog};

/// A number that a call gave, as a register has it.
type Register = libc::c_ulonglong;

/// A thread that is stopped in a system call.
struct Taken {
    thread: i32,
    /// As it was.
    registers: libc::user_regs_struct,
}

fn ptrace(request: libc::c_uint, thread: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: what the request takes as an address of this process is one of a value that lives.
    match unsafe { libc::ptrace(request, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until the thread stops; the signal that it stops for.
fn stopped(thread: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status is written to.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert!(waited == thread && libc::WIFSTOPPED(status), "thread {thread}: {waited}, {status:#x}");
    libc::WSTOPSIG(status)
}

impl Taken {
    /// Stops a thread where it waits for the system; `None`: it is one of the system's own (KVM's),
    /// which runs no code of the process.
    fn take(thread: i32) -> io::Result<Option<Self>> {
        ptrace(libc::PTRACE_SEIZE, thread, 0, 0)?;
        loop {
            ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
            stopped(thread);
            let registers = registers(thread);
            if registers.rip == 0 {
                ptrace(libc::PTRACE_DETACH, thread, 0, 0)?;
                return Ok(None);
            }
            // `syscall` is two bytes, and what comes next is where it goes on.
            if peek(thread, registers.rip - 2).to_le_bytes()[..2] == [0x0f, 0x05] {
                return Ok(Some(Self { thread, registers }));
            }
            ptrace(libc::PTRACE_CONT, thread, 0, 0)?;
            std::thread::yield_now();
        }
    }

    /// Puts bytes below the thread's stack, and gives their address.
    fn put(&self, bytes: &[u8]) -> Register {
        let at = (self.registers.rsp - 4096) & !15;
        for (number, word) in bytes.chunks(8).enumerate() {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            let to = usize::try_from(at).unwrap() + 8 * number;
            ptrace(libc::PTRACE_POKEDATA, self.thread, to, usize::from_le_bytes(whole)).unwrap();
        }
        at
    }

    /// Has the thread make a call: `denied` by its list, or what the call gave.
    fn call(&self, number: i64, arguments: [Register; 6]) -> String {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let rip = self.registers.rip - 2;
        // No call is to be made again on the way.
        let orig_rax = Register::MAX;
        let rax = number.cast_unsigned();
        set(
            self.thread,
            &libc::user_regs_struct { rip, rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..self.registers },
        );
        let outcome = loop {
            ptrace(libc::PTRACE_SINGLESTEP, self.thread, 0, 0).unwrap();
            let signal = stopped(self.thread);
            let now = registers(self.thread);
            if signal == libc::SIGSYS {
                break "denied".to_owned();
            }
            // A trap of the call before.
            if now.rip == rip {
                continue;
            }
            let given = i32::try_from(now.rax.cast_signed()).unwrap_or(0);
            break match -given {
                libc::EACCES => "EACCES".to_owned(),
                libc::EPERM => "EPERM".to_owned(),
                error @ 1..4096 => format!("E{error}"),
                _ => "ok".to_owned(),
            };
        };
        set(self.thread, &self.registers);
        outcome
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        set(self.thread, &self.registers);
        ptrace(libc::PTRACE_DETACH, self.thread, 0, 0).unwrap();
    }
}

fn peek(thread: i32, at: Register) -> Register {
    // SAFETY: the call reads memory of the other process.
    let word = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, thread, at, 0) };
    word.cast_unsigned()
}

fn registers(thread: i32) -> libc::user_regs_struct {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    ptrace(libc::PTRACE_GETREGS, thread, 0, registers.as_mut_ptr().addr()).unwrap();
    // SAFETY: zeroes are registers, and the call has put others in their place.
    unsafe { registers.assume_init() }
}

fn set(thread: i32, registers: &libc::user_regs_struct) {
    ptrace(libc::PTRACE_SETREGS, thread, 0, std::ptr::from_ref(registers).addr()).unwrap();
}

/// What is tried, with a path as its first argument, or without one.
struct Attempt {
    name: &'static str,
    number: i64,
    path: Option<String>,
    arguments: [Register; 6],
}

fn attempts(disk: &str) -> Vec<Attempt> {
    let number = |value: i32| Register::from(value.cast_unsigned());
    let at_cwd = i64::from(libc::AT_FDCWD).cast_unsigned();
    let own = Register::from(std::process::id());
    let opens = |name, path: &str, flags| Attempt {
        name,
        number: libc::SYS_openat,
        path: Some(path.to_owned()),
        arguments: [at_cwd, 0, number(flags), 0, 0, 0],
    };
    let plain = |name, number, arguments| Attempt { name, number, path: None, arguments };
    let named =
        |name, number, path: &str| Attempt { name, number, path: Some(path.to_owned()), arguments: [0; 6] };
    vec![
        opens("read /etc/passwd", "/etc/passwd", libc::O_RDONLY),
        opens("open the disk again", disk, libc::O_RDWR),
        opens("read the client's memory", &format!("/proc/{own}/mem"), libc::O_RDONLY),
        opens("make a file", "/tmp/nelly-taken-over", libc::O_RDWR | libc::O_CREAT),
        named("execute", libc::SYS_execve, "/bin/true"),
        plain("fork", libc::SYS_clone, [number(libc::SIGCHLD), 0, 0, 0, 0, 0]),
        plain("vfork", libc::SYS_vfork, [0; 6]),
        plain("socket", libc::SYS_socket, [number(libc::AF_INET), number(libc::SOCK_STREAM), 0, 0, 0, 0]),
        plain("connect", libc::SYS_connect, [0, 0, 0, 0, 0, 0]),
        plain("signal the client", libc::SYS_kill, [own, 0, 0, 0, 0, 0]),
        plain("trace the client", libc::SYS_ptrace, [16, own, 0, 0, 0, 0]),
        plain("read the client", libc::SYS_process_vm_readv, [own, 0, 0, 0, 0, 0]),
        plain("a handle on the client", libc::SYS_pidfd_open, [own, 0, 0, 0, 0, 0]),
        named("mount", libc::SYS_mount, "tmpfs"),
        plain("a namespace", libc::SYS_unshare, [number(libc::CLONE_NEWUSER), 0, 0, 0, 0, 0]),
        plain("enter a namespace", libc::SYS_setns, [0; 6]),
        plain("io_uring", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        plain("BPF", libc::SYS_bpf, [0; 6]),
        plain("perf", libc::SYS_perf_event_open, [0; 6]),
        plain("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]),
        plain("keys", libc::SYS_keyctl, [0; 6]),
        plain("another user", libc::SYS_setuid, [1, 0, 0, 0, 0, 0]),
        plain("other rules", libc::SYS_seccomp, [0; 6]),
        plain(
            "a program in memory",
            libc::SYS_mmap,
            [
                0,
                4096,
                number(libc::PROT_READ | libc::PROT_EXEC),
                number(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
                Register::MAX,
                0,
            ],
        ),
    ]
}

/// Those that open a file by its name.
const BY_NAME: &[&str] =
    &["read /etc/passwd", "open the disk again", "read the client's memory", "make a file"];

/// The threads of a process, by their numbers.
fn threads(machine: &Machine) -> BTreeMap<i32, String> {
    let tasks = format!("/proc/{}/task", machine.process_id().unwrap());
    let each = fs::read_dir(tasks).unwrap().map(|task| {
        let path = task.unwrap().path();
        let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        (number, fs::read_to_string(path.join("comm")).unwrap().trim().to_owned())
    });
    each.collect()
}

/// What each thread is answered to each attempt, and which call still works.
fn tried(machine: &Machine, disk: &str) -> BTreeMap<String, Vec<(&'static str, String)>> {
    let mut matrix = BTreeMap::new();
    for (thread, name) in threads(machine) {
        let Some(taken) = Taken::take(thread).unwrap() else {
            assert!(name.starts_with("kvm-"), "{name}");
            continue;
        };
        let mut answers: Vec<_> = attempts(disk)
            .into_iter()
            .map(|attempt| {
                let mut arguments = attempt.arguments;
                if let Some(path) = &attempt.path {
                    let at = taken.put(&[path.as_bytes(), &[0]].concat());
                    arguments[usize::from(attempt.number == libc::SYS_openat)] = at;
                }
                (attempt.name, taken.call(attempt.number, arguments))
            })
            .collect();
        // That the thread is taken over shows in what it may do.
        answers.push(("give way to others", taken.call(libc::SYS_sched_yield, [0; 6])));
        drop(taken);
        // Threads of one name have one list.
        let before = matrix.insert(name.clone(), answers.clone());
        assert!(before.is_none_or(|before| before == answers), "{name}");
    }
    matrix
}

/// What is open, each by what the system calls it.
fn open(machine: &Machine) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{}/fd", machine.process_id().unwrap())).unwrap();
    let mut open: Vec<_> =
        files.map(|file| fs::read_link(file.unwrap().path()).unwrap().display().to_string()).collect();
    open.sort();
    open
}

fn start(change: impl FnOnce(&mut MachineConfig)) -> Machine {
    let mut resources = Resources::new();
    let mut config = MachineConfig::new(resources.add(kernel(SPIN)));
    config.spare_slots = 2;
    change(&mut config);
    let isolation = Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() };
    Machine::start(&config, resources, &isolation).unwrap()
}

/// Tries all from each thread, attaches a disk, and tries it again. `by_name` says of threads
/// whether their list has calls that open files, which Landlock refuses them.
fn taken_over(change: impl FnOnce(&mut MachineConfig), by_name: fn(&str) -> bool) {
    watchdog(Duration::from_secs(120));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    fs::write(&path, [7; 4096]).unwrap();
    let disk = path.to_str().unwrap();
    let machine = start(change);
    let first = *threads(&machine).keys().next().unwrap();
    if !rustix::process::geteuid().is_root() {
        // What is not dumpable cannot be taken over by its own user.
        let refused = ptrace(libc::PTRACE_SEIZE, first, 0, 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        return;
    }
    let (before, had) = (tried(&machine, disk), open(&machine));
    assert!(before.len() > 1, "{before:?}");
    for (thread, answers) in &before {
        for (name, answer) in answers {
            let opens = by_name(thread) && BY_NAME.contains(name);
            let refusals: &[&str] = match *name {
                "give way to others" => &["ok"],
                _ if opens => &["EACCES"],
                _ => &["denied"],
            };
            assert!(refusals.contains(&answer.as_str()), "{name} in {thread}: {answer}");
        }
    }
    let source = FileSource::Path(path.clone());
    machine
        .attach_disk(&DiskConfig::new(DiskId::new("late").unwrap(), source, false), Resources::new())
        .unwrap();
    assert_eq!(tried(&machine, disk), before);
    // It has the disk open now and the notifier of its device, and of no kind more than before.
    let kinds = |files: Vec<String>| -> Vec<String> {
        // Sockets and pipes have a number behind their kind.
        let numbered = |file: &String| file.starts_with("socket:") || file.starts_with("pipe:");
        let kind = |file: String| if numbered(&file) { file.split(':').take(1).collect() } else { file };
        let mut kinds: Vec<_> = files.into_iter().map(kind).collect();
        kinds.sort();
        kinds
    };
    let mut expected = kinds(had);
    expected.extend([disk.to_owned(), "anon_inode:[eventfd]".to_owned()]);
    expected.sort();
    assert_eq!(kinds(open(&machine)), expected);
    machine.kill();
    drop(machine.wait());
}

#[test]
fn a_disk_that_is_attached_opens_no_way_out_of_a_machine_with_one_list() {
    taken_over(|_| {}, |_| false);
}

#[test]
fn a_disk_that_is_attached_opens_no_way_out_of_a_machine_with_a_shared_directory() {
    let shared = tempfile::tempdir().unwrap();
    let place = shared.path().to_owned();
    taken_over(
        |config| {
            let source = FileSource::Path(place);
            config.shares = vec![ShareConfig::new(ShareTag::new("s").unwrap(), source, false)];
        },
        |thread| thread == "nelly-dev-0",
    );
}

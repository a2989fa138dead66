//! cgroup v2: one tree for each container, created before its first process and removed after its
//! last.
//!
//! `ID` has the limits and the device program, and no processes; nothing in the container can
//! see it. Below it are `container`, and `exec-N` for each later process. These are not visible
//! either, and each limits the number of cgroups below it. In each of them `root` is the cgroup in
//! which the process is created, and the root of its cgroup namespace; the container's root may do
//! anything in it. The one of the first process also shows the limits, for programs that read them.
//!
//! A container cannot prevent execs through its cgroups (for example by enabling controllers, so
//! that the cgroup accepts no process, or by creating the maximum number of cgroups), because each
//! exec has its own cgroup, and `ID` itself has no limit that the container could exhaust.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::sys;

/// Why an operation on a cgroup failed.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The directory cannot be created.
    #[error("cannot create the cgroup {0:?}")]
    Create(PathBuf, #[source] io::Error),
    /// A control file cannot be written.
    #[error("cannot write {value:?} to the cgroup file {file:?}")]
    Write {
        /// The path of the file.
        file: PathBuf,
        /// The value to write.
        value: String,
        /// The system's error.
        source: io::Error,
    },
    /// The device program cannot be attached.
    #[error("cannot attach the device program to the cgroup {0:?}")]
    Devices(PathBuf, #[source] io::Error),
}

/// Statistics of a cgroup.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CgroupStats {
    /// CPU time in nanoseconds.
    pub cpu_usage_ns: u64,
    /// The part of it in user mode.
    pub cpu_user_ns: u64,
    /// The part of it in the kernel.
    pub cpu_system_ns: u64,
    /// Bytes in use.
    pub memory_current_bytes: u64,
    /// Maximum of the bytes in use.
    pub memory_peak_bytes: u64,
    /// Limit in bytes, 0 if there is none.
    pub memory_limit_bytes: u64,
    /// Number of processes killed by the kernel's OOM killer.
    pub oom_kills: u64,
    /// Number of processes and threads.
    pub pids_current: u64,
}

/// A container's cgroups. Dropping this leaves the directories: see [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    /// The mount point.
    root: PathBuf,
    /// The cgroup with the limits.
    path: PathBuf,
    limits: File,
    container: File,
    /// Number of execs so far.
    execs: AtomicU64,
    /// Cgroups of ended execs in which background processes are still running.
    left: Mutex<Vec<PathBuf>>,
}

/// The cgroups of one exec, for [`Cgroup::remove_exec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCgroup(PathBuf);

/// Name of the cgroup of the container's first process.
const CONTAINER: &str = "container";

/// Name of the cgroup in which a process is created, below [`CONTAINER`] and each exec's cgroup.
const ROOT: &str = "root";

/// Maximum depth of cgroups below a container's, because the agent traverses them.
const DEPTH: usize = 32;

/// Maximum number of cgroups of a container, including the one in which it is created. Each of them
/// uses kernel memory.
const MOST: usize = 1024;

/// Maximum number of cgroups of each exec.
const MOST_OF_EXEC: usize = 64;

/// Controllers that are enabled for every container: for statistics, CPU shares, and programs that
/// read their limits. Other controllers would make every start slower; they are enabled with the
/// first limit that needs them.
const USUAL: [&str; 3] = ["cpu", "memory", "pids"];

/// The directory of this process's own cgroup; `None` where there is no version 2.
#[must_use]
pub fn own() -> Option<PathBuf> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    of_process(&read("/proc/self/cgroup"), &read("/proc/self/mounts"))
}

/// The same, of what `/proc` says: cgroups(7) and fstab(5).
fn of_process(cgroup: &str, mounts: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then_some(place)
    })?;
    Some(Path::new(mount).join(path))
}

/// Enables the usual controllers, as far as the cgroup has them, for its children.
///
/// # Errors
/// [`CgroupError::Write`]. A cgroup without controllers is not an error, but setting a limit in it
/// is.
pub fn delegate_controllers(cgroup: &Path) -> Result<(), CgroupError> {
    let known = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    let given = fs::read_to_string(cgroup.join("cgroup.subtree_control")).unwrap_or_default();
    let missing: Vec<_> = known
        .split_whitespace()
        .filter(|controller| {
            USUAL.contains(controller) && !given.split_whitespace().any(|one| one == *controller)
        })
        .map(|controller| format!("+{controller}"))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        write(&cgroup.join("cgroup.subtree_control"), &missing.join(" "))
    }
}

fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    // One write(2) for each value, because the kernel parses each write separately.
    OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut open| open.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Write { file: file.to_owned(), value: value.to_owned(), source })
}

/// Writes to a control file if it exists.
fn write_if_there(file: &Path, value: &str) -> Result<(), CgroupError> {
    if file.exists() { write(file, value) } else { Ok(()) }
}

fn make(path: &Path) -> Result<File, CgroupError> {
    fs::create_dir(path)
        .and_then(|()| File::open(path))
        .map_err(|error| CgroupError::Create(path.to_owned(), error))
}

/// Creates a cgroup with a limit of descendants, and the first of them.
fn make_bounded(path: &Path, most: usize) -> Result<File, CgroupError> {
    make(path)?;
    write_if_there(&path.join("cgroup.max.descendants"), &most.to_string())?;
    make(&path.join(ROOT))
}

impl Cgroup {
    /// Creates the cgroup `path` below the mount point `root` (whose controllers must be enabled,
    /// see [`delegate_controllers`]), and the cgroup for the container's first process.
    ///
    /// # Errors
    /// [`CgroupError`], also if the directory already exists (two containers must not share
    /// limits).
    pub fn create(root: &Path, path: &str) -> Result<Self, CgroupError> {
        let mut current = root.to_owned();
        let (above, name) = path.rsplit_once('/').map_or((None, path), |(above, name)| (Some(above), name));
        for part in above.into_iter().flat_map(|above| above.split('/')) {
            current.push(part);
            match fs::create_dir(&current) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Create(current, error));
                }
                _ => delegate_controllers(&current)?,
            }
        }
        current.push(name);
        let limits = make(&current)?;
        write_if_there(&current.join("cgroup.max.depth"), &DEPTH.to_string())?;
        delegate_controllers(&current)?;
        let container = make_bounded(&current.join(CONTAINER), MOST)?;
        delegate_controllers(&current.join(CONTAINER))?;
        let (execs, left) = (AtomicU64::default(), Mutex::default());
        Ok(Self { root: root.to_owned(), path: current, limits, container, execs, left })
    }

    /// Sets a limit: writes a value to a control file, and to the same file of the cgroup that the
    /// container sees. With `optional`, a missing file is not an error.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn set(&self, file: &str, value: &str, optional: bool) -> Result<(), CgroupError> {
        let shown = self.path.join(CONTAINER).join(ROOT).join(file);
        let path = self.path.join(file);
        self.hand_down(file);
        if optional {
            write_if_there(&path, value)?;
            return write_if_there(&shown, value);
        }
        write(&path, value)?;
        write(&shown, value)
    }

    /// Enables the controller of a file for the container. Errors are ignored: writing the file
    /// will fail and explain it.
    fn hand_down(&self, file: &str) {
        let Some((controller, _)) = file.split_once('.').filter(|(name, _)| !USUAL.contains(name)) else {
            return;
        };
        let container = self.path.join(CONTAINER);
        let above: Vec<_> = container.ancestors().take_while(|above| above.starts_with(&self.root)).collect();
        for cgroup in above.into_iter().rev() {
            let _ = write(&cgroup.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }

    /// Attaches the device program, which applies to all descendants.
    ///
    /// # Errors
    /// [`CgroupError::Devices`].
    pub fn attach_devices(&self, program: &[u64]) -> Result<(), CgroupError> {
        sys::attach_device_program(self.limits.as_fd(), program)
            .map_err(|error| CgroupError::Devices(self.path.clone(), error))
    }

    /// The cgroup in which the container's first process is created.
    #[must_use]
    pub fn of_container(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }

    /// Creates the cgroups of another process, and returns the one in which it is created. Cgroups
    /// of earlier execs whose processes have all ended are removed first.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn make_exec(&self) -> Result<(ExecCgroup, File), CgroupError> {
        self.left().retain(|left| !remove_unless_populated(left));
        let number = self.execs.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("exec-{number}"));
        let born = make_bounded(&path, MOST_OF_EXEC)?;
        Ok((ExecCgroup(path), born))
    }

    /// Removes the cgroups of an exec that ended, or later if it left background processes.
    pub fn remove_exec(&self, exec: ExecCgroup) {
        if !remove_unless_populated(&exec.0) {
            self.left().push(exec.0);
        }
    }

    fn left(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends SIGKILL to all processes in it and below, atomically.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Process ids of all its processes, in the agent's PID namespace.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        let mut open = vec![self.path.clone()];
        while let Some(path) = open.pop() {
            let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.filter(is_directory).map(|entry| entry.path()));
        }
        found
    }

    /// Number of processes killed by the OOM killer in it or below.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        field(&text, "oom_kill")
    }

    /// Memory in use, in bytes; 0 if the kernel does not provide it.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.current")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Its statistics; values that the kernel does not provide are 0.
    #[must_use]
    pub fn stats(&self) -> CgroupStats {
        let read = |file: &str| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let number = |file: &str| read(file).trim().parse().unwrap_or(0);
        CgroupStats {
            memory_current_bytes: self.memory_bytes(),
            memory_peak_bytes: number("memory.peak"),
            memory_limit_bytes: number("memory.max"),
            oom_kills: self.oom_kills(),
            pids_current: number("pids.current"),
            ..cpu_figures(&self.path)
        }
    }

    /// Removes the cgroup and those that the container created below. False while processes are
    /// still in it.
    #[must_use]
    pub fn remove(&self) -> bool {
        remove_tree(&self.path, 0)
    }
}

fn is_directory(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

/// The CPU time of the cgroup at a path; all other fields are 0.
#[must_use]
pub fn cpu_figures(cgroup: &Path) -> CgroupStats {
    let text = fs::read_to_string(cgroup.join("cpu.stat")).unwrap_or_default();
    CgroupStats {
        cpu_usage_ns: field(&text, "usage_usec").saturating_mul(1000),
        cpu_user_ns: field(&text, "user_usec").saturating_mul(1000),
        cpu_system_ns: field(&text, "system_usec").saturating_mul(1000),
        ..CgroupStats::default()
    }
}

/// False while processes are in it, because they may use cgroups that they created.
fn remove_unless_populated(path: &Path) -> bool {
    let events = fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    field(&events, "populated") == 0 && remove_tree(path, 1)
}

fn remove_tree(path: &Path, depth: usize) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => return true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
        // The container must not exhaust the agent's stack.
        Err(_) if depth >= DEPTH => return false,
        Err(_) => {}
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if is_directory(&entry) && !remove_tree(&entry.path(), depth + 1) {
            return false;
        }
    }
    fs::remove_dir(path).is_ok()
}

/// The number after a name in a file of `name number` lines; 0 if there is no such line.
fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(field(text, "oom_kill"), 2);
        assert_eq!(field(text, "oom"), 3);
        assert_eq!(field(text, "kill"), 0);
        assert_eq!(field("", "oom"), 0);
    }

    #[test]
    fn the_own_cgroup_is_that_of_version_2() {
        let mounts =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = of_process("1:cpu:/a\n0::/system.slice/agent.service\n", mounts);
        assert_eq!(found, Some("/sys/fs/cgroup/unified/system.slice/agent.service".into()));
        assert_eq!(of_process("1:cpu:/a\n", mounts), None);
        assert_eq!(of_process("0::/\n", "cgroup /sys/fs/cgroup cgroup rw 0 0\n"), None);
    }

    #[test]
    fn figures_come_from_the_files() {
        let root = tempfile::tempdir().expect("a directory");
        let cgroup = Cgroup::create(root.path(), "a/b").expect("plain directories do");
        let dir = root.path().join("a/b");
        let (exec, _) = cgroup.make_exec().expect("made");
        for (file, text) in [
            ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "oom_kill 1\n"),
            ("pids.current", "2\n"),
            ("container/root/cgroup.procs", "12\n13\n"),
            ("exec-0/root/cgroup.procs", "14\n"),
        ] {
            fs::write(dir.join(file), text).expect("written");
        }
        let stats = cgroup.stats();
        assert_eq!((stats.cpu_usage_ns, stats.cpu_user_ns, stats.cpu_system_ns), (30_000, 20_000, 10_000));
        assert_eq!((stats.memory_current_bytes, stats.memory_limit_bytes), (4096, 0));
        assert_eq!((stats.oom_kills, stats.pids_current), (1, 2));
        let mut processes = cgroup.processes();
        processes.sort_unstable();
        assert_eq!(processes, vec![12, 13, 14]);
        assert_eq!(exec.0, dir.join("exec-0"));
    }

    #[test]
    fn an_execs_cgroups_go_when_they_are_empty() {
        let root = tempfile::tempdir().expect("a directory");
        let cgroup = Cgroup::create(root.path(), "x").expect("made");
        let dir = root.path().join("x");
        let (first, _) = cgroup.make_exec().expect("made");
        let (second, _) = cgroup.make_exec().expect("made");
        fs::create_dir_all(dir.join("exec-0/root/of/its/own")).expect("nested");
        fs::create_dir_all(dir.join("exec-1/root/of/its/own")).expect("nested");
        fs::write(dir.join("exec-1/cgroup.events"), "populated 1\nfrozen 0\n").expect("written");
        cgroup.remove_exec(first);
        cgroup.remove_exec(second);
        assert!(!dir.join("exec-0").exists());
        assert!(dir.join("exec-1/root/of/its/own").exists(), "what lives on may need it");
        // Unlike the kernel's, this file would be in the way of the removal.
        fs::remove_file(dir.join("exec-1/cgroup.events")).expect("removed");
        cgroup.make_exec().expect("made");
        assert!(!dir.join("exec-1").exists() && dir.join("exec-2").exists());
    }

    #[test]
    fn the_same_cgroup_is_not_given_twice() {
        let root = tempfile::tempdir().expect("a directory");
        let first = Cgroup::create(root.path(), "x").expect("first");
        assert!(matches!(Cgroup::create(root.path(), "x"), Err(CgroupError::Create(..))));
        fs::create_dir_all(root.path().join("x/y/z")).expect("nested");
        assert!(first.remove());
        assert!(!root.path().join("x").exists());
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let root = tempfile::tempdir().expect("a directory");
        let cgroup = Cgroup::create(root.path(), "x").expect("made");
        let error = cgroup.set("pids.max", "5", false).expect_err("no such file").to_string();
        assert!(error.contains("pids.max") && error.contains('5'), "{error}");
        assert!(cgroup.set("memory.swap.max", "5", true).is_ok());
    }
}

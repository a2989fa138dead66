//! cgroup version 2: one directory a container, made before its first process and removed after its last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::sys;

/// What went wrong with a cgroup.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// A directory.
    #[error("cannot make the cgroup {0:?}")]
    Create(PathBuf, #[source] io::Error),
    /// A file.
    #[error("cannot write {value:?} to the cgroup file {file:?}")]
    Write {
        /// Its path.
        file: PathBuf,
        /// What was to be written.
        value: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The device program.
    #[error("cannot attach the device program to the cgroup {0:?}")]
    Devices(PathBuf, #[source] io::Error),
}

/// Figures of a cgroup.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CgroupStats {
    /// Nanoseconds of processor time.
    pub cpu_usage_ns: u64,
    /// Of them in user mode.
    pub cpu_user_ns: u64,
    /// Of them in the kernel.
    pub cpu_system_ns: u64,
    /// Bytes in use.
    pub memory_current_bytes: u64,
    /// Most bytes ever in use.
    pub memory_peak_bytes: u64,
    /// Limit in bytes, 0 when there is none.
    pub memory_limit_bytes: u64,
    /// Processes that the kernel's OOM killer ended.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids_current: u64,
}

/// A container's cgroup. Dropping it leaves the directory: see [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
}

/// Hands every controller that the cgroup has to its children.
///
/// # Errors
/// [`CgroupError::Write`]. A cgroup without controllers is no error: then limits are, when one is set.
pub fn delegate_controllers(cgroup: &Path) -> Result<(), CgroupError> {
    let known = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    let given = fs::read_to_string(cgroup.join("cgroup.subtree_control")).unwrap_or_default();
    let missing: Vec<_> = known
        .split_whitespace()
        .filter(|controller| !given.split_whitespace().any(|one| one == *controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        write(&cgroup.join("cgroup.subtree_control"), &missing.join(" "))
    }
}

fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    // One write(2) a value: the kernel parses each on its own.
    OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut open| open.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Write { file: file.to_owned(), value: value.to_owned(), source })
}

impl Cgroup {
    /// Makes the cgroup `path` below the mount `root`, handing controllers down on the way.
    ///
    /// # Errors
    /// [`CgroupError`]; a directory that is there already is one (two containers must not share limits).
    pub fn create(root: &Path, path: &str) -> Result<Self, CgroupError> {
        let mut current = root.to_owned();
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            delegate_controllers(&current)?;
            current.push(part);
            match fs::create_dir(&current) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists || parts.peek().is_none() => {
                    return Err(CgroupError::Create(current, error));
                }
                _ => {}
            }
        }
        let directory = File::open(&current).map_err(|error| CgroupError::Create(current.clone(), error))?;
        Ok(Self { path: current, directory })
    }

    /// Writes a value to one of its files; with `optional` a file that the kernel does not have is fine.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn set(&self, file: &str, value: &str, optional: bool) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        if optional && !path.exists() { Ok(()) } else { write(&path, value) }
    }

    /// Attaches the device program.
    ///
    /// # Errors
    /// [`CgroupError::Devices`].
    pub fn attach_devices(&self, program: &[u64]) -> Result<(), CgroupError> {
        sys::attach_device_program(self.directory.as_fd(), program)
            .map_err(|error| CgroupError::Devices(self.path.clone(), error))
    }

    /// Sends SIGKILL to everything in it, atomically.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.set("cgroup.kill", "1", false)
    }

    /// Process ids in it (not in cgroups below), in our PID namespace.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// How often the kernel's OOM killer struck in it or below.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        field(&text, "oom_kill")
    }

    /// Its figures; what the kernel does not count is 0.
    #[must_use]
    pub fn stats(&self) -> CgroupStats {
        let read = |file: &str| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let number = |file: &str| read(file).trim().parse().unwrap_or(0);
        CgroupStats {
            memory_current_bytes: number("memory.current"),
            memory_peak_bytes: number("memory.peak"),
            memory_limit_bytes: number("memory.max"),
            oom_kills: self.oom_kills(),
            pids_current: number("pids.current"),
            ..cpu_figures(&self.path)
        }
    }

    /// Removes the directory and those that the container made below. False while processes are still in it.
    #[must_use]
    pub fn remove(&self) -> bool {
        remove_tree(&self.path, 0)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Processor time of the cgroup at a path; the rest is 0.
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

/// A container may nest cgroups as it likes; the agent's stack is not its to use up.
const DEEPEST: usize = 32;

fn remove_tree(path: &Path, depth: usize) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => return true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
        Err(_) if depth >= DEEPEST => return false,
        Err(_) => {}
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove_tree(&entry.path(), depth + 1) {
            return false;
        }
    }
    fs::remove_dir(path).is_ok()
}

/// The number after a name in a file of `name number` lines; 0 when it is not there.
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
    fn figures_come_from_the_files() {
        let root = tempfile::tempdir().expect("a directory");
        let cgroup = Cgroup::create(root.path(), "a/b").expect("plain directories do");
        let dir = root.path().join("a/b");
        for (file, text) in [
            ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "oom_kill 1\n"),
            ("pids.current", "2\n"),
            ("cgroup.procs", "12\n13\n"),
        ] {
            fs::write(dir.join(file), text).expect("written");
        }
        let stats = cgroup.stats();
        assert_eq!((stats.cpu_usage_ns, stats.cpu_user_ns, stats.cpu_system_ns), (30_000, 20_000, 10_000));
        assert_eq!((stats.memory_current_bytes, stats.memory_limit_bytes), (4096, 0));
        assert_eq!((stats.oom_kills, stats.pids_current), (1, 2));
        assert_eq!(cgroup.processes(), vec![12, 13]);
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

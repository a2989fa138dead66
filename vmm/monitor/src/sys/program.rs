//! A program that is started again and again, and stays the same while its file is replaced.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A program, as its file was when it was opened.
///
/// An upgrade puts another file in its place. Who talks to the old program in words of the old
/// version goes on to start that one.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    /// Nothing if it could not be opened: then starting it says why.
    file: Option<File>,
}

impl Program {
    /// The program at `path`, which need not be there: starting it says so then.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        // To read it is no right that executing it needs. Who lacks it has the path alone.
        let file = File::open(&path).ok();
        Self { path, file }
    }

    /// What to execute: its path, as long as the file there is the one that was opened. Else, where
    /// the system has such a name, one of that file in `/proc/self/fd`, which is good in a child
    /// of this process until that executes it, and as long as this value lives.
    #[must_use]
    pub fn executable(&self) -> PathBuf {
        self.moved().unwrap_or_else(|| self.path.clone())
    }

    fn moved(&self) -> Option<PathBuf> {
        let identity = |it: std::fs::Metadata| (it.dev(), it.ino());
        let own = identity(self.file.as_ref()?.metadata().ok()?);
        if std::fs::metadata(&self.path).ok().map(identity) == Some(own) {
            return None;
        }
        own_name(self.file.as_ref()?)
    }

    /// The path that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(target_os = "linux")]
fn own_name(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd as _;
    Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into())
}

/// Other systems execute by paths alone: the new program is started.
#[cfg(not(target_os = "linux"))]
fn own_name(_file: &File) -> Option<PathBuf> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_stays_what_it_was_while_its_file_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("program");
        let ends = |program: &Program| Command::new(program.executable()).status().map(|it| it.code()).ok();
        std::fs::copy("/bin/true", &path).unwrap();
        let program = Program::open(path.clone());
        assert_eq!((program.executable(), ends(&program)), (path.clone(), Some(Some(0))));
        // As a package manager does it: another file of that name.
        let new = scratch.path().join("new");
        std::fs::copy("/bin/false", &new).unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(ends(&program), Some(Some(0)));
        assert_ne!(program.executable(), path);
        assert_eq!(ends(&Program::open(path.clone())), Some(Some(1)));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(ends(&program), Some(Some(0)));
        // One that never was there is looked for again.
        let missing = Program::open(path.clone());
        assert_eq!((ends(&missing), missing.path()), (None, path.as_path()));
        std::fs::copy("/bin/true", &path).unwrap();
        assert_eq!((missing.executable(), ends(&missing)), (path, Some(Some(0))));
    }
}

//! Paths in the record of a machine of `nelly boot -d`, which other processes open later.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::fail::Usage;

/// The absolute path of a file that `flag` names.
///
/// # Errors
/// It cannot be resolved, or leads to something else in every process: an error of how the command
/// was used.
pub(crate) fn lasting(flag: &str, path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).with_context(|| format!("{flag} {}", path.display()))?;
    // /dev/fd and links like it lead to a directory of this process.
    let parent = absolute.parent().and_then(|parent| parent.canonicalize().ok());
    let real = parent.zip(absolute.file_name()).map(|(parent, name)| parent.join(name));
    if is_of_process(&plain(&absolute)) || real.is_some_and(|real| is_of_process(&real)) {
        return Err(Usage::error(format!(
            "{flag} {}: with -d the path is opened by other processes, also later, in which it leads elsewhere; \
             name the file itself",
            path.display()
        )));
    }
    Ok(absolute)
}

/// An absolute path without `.` and `..`, as far as no link is asked.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
        plain
    })
}

/// Whether a path goes by what one process has open.
fn is_of_process(path: &Path) -> bool {
    let mut words = path.components().skip(1).map(|part| part.as_os_str().to_str().unwrap_or_default());
    match (words.next(), words.next()) {
        (Some("dev"), Some("fd" | "stdin" | "stdout" | "stderr")) => true,
        (Some("proc"), Some("self" | "thread-self")) => true,
        (Some("proc"), Some(word)) => word.bytes().all(|digit| digit.is_ascii_digit()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fail;

    #[test]
    fn a_path_of_one_process_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("descriptors");
        std::os::unix::fs::symlink("/proc/self/fd", &link).unwrap();
        let linked = link.join("0");
        for path in [
            "/dev/fd/3",
            "/dev/stdin",
            "/proc/self/fd/3",
            "/proc/thread-self/fd/3",
            "/proc/self/cwd/disk.img",
            "/proc/1/fd/3",
            "/dev/../dev/./fd/3",
            linked.to_str().unwrap(),
        ] {
            let error = lasting("--kernel", Path::new(path)).unwrap_err();
            assert!(fail::is_usage(&error) && error.to_string().contains(path), "{path}: {error}");
        }
        for path in ["/dev/sda", "/dev/mapper/fd", "/proc/cpuinfo", "/home/dev/fd/3", "/a/../b"] {
            assert_eq!(lasting("--kernel", Path::new(path)).unwrap(), Path::new(path));
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(lasting("--kernel", Path::new("a")).unwrap(), here.join("a"));
    }
}

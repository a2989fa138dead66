//! Extended attributes, of links themselves and never of what they lead to.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::check;

/// What the kernel keeps to itself of an overlay.
const OF_OVERLAYS: &[u8] = b"trusted.overlay.";

/// The attribute that a server of a shared directory keeps nowhere (`nelly_share::TOUCH`).
const TOUCH: &CStr = c"user.nelly.touch";

/// Sets an attribute that no file keeps, at a path below a directory, of which no part may be a
/// link and none leads out; the empty path is the directory. Of what has no such attributes (links,
/// pipes, sockets), the directory that it is in gets it.
///
/// # Errors
/// Those of openat2(2) and lsetxattr(2): `EAGAIN` of what this guest was the last to change.
pub fn touch(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    if matches!(name, b"." | b"..") || (name.is_empty() && !path.is_empty()) {
        return Err(invalid());
    }
    let parent = CString::new(if parent.is_empty() { b"." } else { parent })?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    );
    let directory = openat2(root, parent.as_c_str(), how)?;
    // The call takes no descriptor of this kind, but follows its name. Behind it stands one name,
    // which the kernel looks up again when it is another file's by now.
    let own = format!("/proc/self/fd/{}/", directory.as_raw_fd());
    match set_touch(&[own.as_bytes(), name].concat()) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => set_touch(own.as_bytes()),
        set => set,
    }
}

fn set_touch(path: &[u8]) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: two C strings, and the pointer and the length of a live slice.
    let set = unsafe { libc::lsetxattr(path.as_ptr(), TOUCH.as_ptr(), b"1".as_ptr().cast(), 1, 0) };
    check(set)?;
    // The kernel keeps size and times for a second more, and whoever has the file mapped would not
    // hear of it at all. What is gone meanwhile has none.
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_FORCE_SYNC;
    // SAFETY: `statx` is plain integers, of which each may be 0.
    let mut anew = unsafe { std::mem::zeroed() };
    // SAFETY: a C string, and a live `statx` that the kernel fills.
    unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut anew) };
    Ok(())
}

/// Gives `to` every extended attribute that `from` has. Those that its file system does not keep
/// are left out, as by other engines.
///
/// # Errors
/// Those of llistxattr(2), lgetxattr(2) and lsetxattr(2) but `ENOTSUP`.
pub fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (from, to) = (c_path(from)?, c_path(to)?);
    let Some(names) = read(|buffer, size| {
        // SAFETY: a C string, and a buffer of this size or none.
        unsafe { libc::llistxattr(from.as_ptr(), buffer.cast(), size) }
    })?
    else {
        return Ok(());
    };
    for name in names.split_inclusive(|byte| *byte == 0).filter(|name| !name.starts_with(OF_OVERLAYS)) {
        let name = CStr::from_bytes_with_nul(name).map_err(io::Error::other)?;
        let value = read(|buffer, size| {
            // SAFETY: two C strings, and a buffer of this size or none.
            unsafe { libc::lgetxattr(from.as_ptr(), name.as_ptr(), buffer, size) }
        })?;
        let Some(value) = value else { continue };
        // SAFETY: two C strings, and the pointer and the length of a live slice.
        let set =
            unsafe { libc::lsetxattr(to.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        if set < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENOTSUP) {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Asks for the size, then for the bytes; nothing when the file system has no attributes.
fn read(ask: impl Fn(*mut libc::c_void, usize) -> isize) -> io::Result<Option<Vec<u8>>> {
    let answer = |size: isize| usize::try_from(size).map_err(|_| io::Error::last_os_error());
    let size = match answer(ask(std::ptr::null_mut(), 0)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return Ok(None),
        size => size?,
    };
    let mut bytes = vec![0; size];
    // With no room for anything it would ask for the size again.
    if size > 0 {
        let size = answer(ask(bytes.as_mut_ptr().cast(), size))?;
        bytes.truncate(size);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn attributes_are_copied_of_files_and_not_of_what_links_lead_to() {
        let top = tempfile::tempdir().expect("a directory");
        let [from, to, link] = ["from", "to", "link"].map(|name| top.path().join(name));
        for path in [&from, &to] {
            fs::write(path, "").expect("written");
        }
        std::os::unix::fs::symlink(&from, &link).expect("linked");
        let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("no zero byte");
        for (name, value) in [(c"user.text", &b"value"[..]), (c"user.empty", b"")] {
            let path = c_path(&from);
            // SAFETY: two C strings, and the pointer and the length of a live slice.
            let set = unsafe {
                libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
            };
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
        }
        let read_one = |path: &Path, name: &CStr| {
            let path = c_path(path);
            // SAFETY: two C strings, and a buffer of this size or none.
            read(|buffer, size| unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer, size) })
        };
        copy_attributes(&link, &to).expect("a link has none");
        assert!(read_one(&to, c"user.text").is_err());
        copy_attributes(&from, &to).expect("copied");
        assert_eq!(read_one(&to, c"user.text").expect("there"), Some(b"value".to_vec()));
        assert_eq!(read_one(&to, c"user.empty").expect("there"), Some(Vec::new()));
    }
}

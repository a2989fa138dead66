//! A directory for a target that writes files, with a neighbour that has to stay as it is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that is removed with what is in it: `tree` is the target's, what lies beside it must
/// not change.
pub(crate) struct Place {
    top: PathBuf,
}

impl Place {
    /// An empty tree with `beside` and a link to it beside it.
    pub(crate) fn new(target: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // In memory where that can be had: there are thousands of them in a minute.
        let memory = Path::new("/dev/shm");
        let home = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let top = home.join(format!("nelly-fuzz-{target}-{}-{number}", std::process::id()));
        // Of a run that was killed, perhaps.
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir_all(top.join("tree")).expect("there is room");
        std::fs::write(top.join("beside"), b"beside").expect("there is room");
        Self { top }
    }

    /// The target's directory.
    pub(crate) fn tree(&self) -> PathBuf {
        self.top.join("tree")
    }

    /// What lies beside the tree, with its contents.
    pub(crate) fn beside(&self) -> Vec<(OsString, Vec<u8>)> {
        let mut found: Vec<_> = std::fs::read_dir(&self.top)
            .expect("it is there")
            .map(|entry| entry.expect("it is there").file_name())
            .filter(|name| name != "tree")
            .map(|name| (name.clone(), std::fs::read(self.top.join(&name)).unwrap_or_default()))
            .collect();
        found.sort();
        found
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::fs::remove_dir_all(&self.top).is_err() {
            open(&self.tree());
            let _ = std::fs::remove_dir_all(&self.top);
        }
    }
}

/// Lets an ordinary user remove what is in a directory, whatever mode it was given.
fn open(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open(&entry.path());
        }
    }
}

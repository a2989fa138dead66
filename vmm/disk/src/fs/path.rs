//! Paths in a volume. Symbolic links never leave it: an absolute one begins at its root, and `..`
//! of the root is the root.

use std::io;

use super::{Entry, FsError, NAMES_MAX, Node, NodeKind, Volume};
use crate::buffer::ReadBuffer;
use crate::number::{at_most, fits};
use crate::traits::ReadAt;

/// Most symbolic links of one path, as Linux has it.
pub const SYMLINKS_MAX: u32 = 40;

/// Most parts of a path, those of its links included.
const PARTS_MAX: usize = 1024;

/// What `path` names, the last link followed; `None` when nothing is there. It begins at the root,
/// with or without a slash.
///
/// # Errors
/// [`FsError`]; also when it leads through a file, or links in a circle.
pub fn resolve(volume: &dyn Volume, path: &str) -> Result<Option<Node>, FsError> {
    let refused = |why| FsError::Path { path: path.to_owned(), why };
    let mut above: Vec<Node> = vec![volume.root()?];
    // The next part is the last one.
    let mut left: Vec<String> = parts(path);
    let (mut links, mut steps) = (0, 0);
    while let Some(part) = left.pop() {
        steps += 1;
        if steps > PARTS_MAX || left.len() > PARTS_MAX {
            return Err(refused("it has too many parts"));
        }
        let Some(&here) = above.last() else { return Err(refused("it has no beginning")) };
        if here.kind != NodeKind::Directory {
            return Err(refused("it leads through something that is no directory"));
        }
        if part == ".." {
            if above.len() > 1 {
                above.pop();
            }
            continue;
        }
        let Some(node) = lookup(volume, here, &part)? else { return Ok(None) };
        if node.kind == NodeKind::Link {
            links += 1;
            if links > SYMLINKS_MAX {
                return Err(refused("it has too many symbolic links, or they lead in a circle"));
            }
            let target = volume.link(node)?;
            if target.starts_with('/') {
                above.truncate(1);
            }
            left.extend(parts(&target));
        } else {
            above.push(node);
        }
    }
    Ok(above.last().copied())
}

/// The parts of a path, the first at the end.
fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).rev().map(ToOwned::to_owned).collect()
}

fn lookup(volume: &dyn Volume, directory: Node, name: &str) -> Result<Option<Node>, FsError> {
    let mut found: Option<Entry> = None;
    volume.entries(directory, &mut |other, entry| {
        if volume.same_name(other, name) {
            found = Some(entry);
        }
        found.is_none()
    })?;
    found.map(|entry| volume.node(entry)).transpose()
}

/// The names in the directory at `path`, in no order; `None` when nothing is there, or no
/// directory.
///
/// # Errors
/// [`FsError`]; also for more than [`NAMES_MAX`] names.
pub fn list(volume: &dyn Volume, path: &str) -> Result<Option<Vec<String>>, FsError> {
    let Some(node) = resolve(volume, path)?.filter(|node| node.kind == NodeKind::Directory) else {
        return Ok(None);
    };
    let mut names = Vec::new();
    volume.entries(node, &mut |name, _| {
        names.push(name.to_owned());
        names.len() <= NAMES_MAX
    })?;
    if names.len() > NAMES_MAX {
        return Err(FsError::TooLarge { what: format!("the directory {path}"), max: NAMES_MAX as u64 });
    }
    Ok(Some(names))
}

/// The file at `path`, to be read; `None` when nothing is there, or no regular file.
///
/// # Errors
/// [`FsError`].
pub fn open<'a>(volume: &'a dyn Volume, path: &str) -> Result<Option<FileReader<'a>>, FsError> {
    let node = resolve(volume, path)?.filter(|node| node.kind == NodeKind::File);
    Ok(node.map(|node| FileReader { volume, node }))
}

/// The bytes of the file at `path`, at most `max`; `None` as [`open`].
///
/// # Errors
/// [`FsError`]; [`FsError::TooLarge`] for more than `max` bytes.
pub fn read_file(volume: &dyn Volume, path: &str, max: u64) -> Result<Option<Vec<u8>>, FsError> {
    let Some(file) = open(volume, path)? else { return Ok(None) };
    if file.len() > max {
        return Err(FsError::TooLarge { what: path.to_owned(), max });
    }
    let mut bytes = vec![0; fits(file.len(), "hosts of Nelly have 64 bits")];
    file.read_exact_at(&mut bytes, 0).map_err(|error| undo(error, path))?;
    Ok(Some(bytes))
}

/// An error of the file system that went through [`ReadAt`].
fn undo(error: io::Error, path: &str) -> FsError {
    match error.downcast::<FsError>() {
        Ok(error) => error,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            FsError::Corrupt(format!("{path} ends before its end"))
        }
        Err(error) => error.into(),
    }
}

/// A file of a volume.
pub struct FileReader<'a> {
    volume: &'a dyn Volume,
    node: Node,
}

impl ReadAt for FileReader<'_> {
    fn len(&self) -> u64 {
        self.node.size
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let want = at_most(self.len().saturating_sub(offset), into.size()).min(1 << 20);
        if want == 0 {
            return Ok(0);
        }
        let mut bytes = vec![0; want];
        let read = self.volume.read(self.node, &mut bytes, offset).map_err(|error| match error {
            FsError::Read(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        })?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into.copy_in(0, &bytes[..read]);
        Ok(read)
    }
}

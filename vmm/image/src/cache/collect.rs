//! Removing files of the cache.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Cache, CacheError, Workshop, part_in};
use crate::digest::Digest;
use crate::erofs::{BLOCK_SIZE, check_superblock};
use crate::removed::Removed;
use crate::trusted::{TrustedDir, io_error};

/// Whether a file goes.
type Judge<'a> = dyn Fn(&PathBuf) -> bool + 'a;

impl Cache {
    /// Removes the images and layers whose paths `goes` picks, and the marks that `mark_goes`
    /// picks. What another process is building stays.
    pub(crate) fn remove_files(
        &self,
        goes: &Judge<'_>,
        mark_goes: &dyn Fn(&Digest) -> bool,
    ) -> Result<Removed, CacheError> {
        let mut done = Removed::default();
        if self.dir.is_none() {
            return Ok(done);
        }
        let workshop = self.prepare()?;
        for name in names(&workshop.verified)? {
            let word = name.to_string_lossy().replacen('-', ":", 1);
            if word.parse().is_ok_and(|mark| mark_goes(&mark)) {
                workshop.verified.remove(&name)?;
            }
        }
        for dir in [&workshop.images, &workshop.layers] {
            for name in names(dir)? {
                if goes(&self.path.join(dir.path().file_name().unwrap_or_default()).join(&name)) {
                    workshop.remove_unlocked(dir, &name, &mut done)?;
                }
            }
        }
        Ok(done)
    }

    /// Removes what older versions of this program made, unless its path is in `kept`: images that
    /// are whole in one file, and halves of layers.
    pub(crate) fn remove_old(&self, kept: &HashSet<PathBuf>) -> Result<Removed, CacheError> {
        let mut done = Removed::default();
        if self.dir.is_none() {
            return Ok(done);
        }
        let workshop = self.prepare()?;
        for name in names(&workshop.images)? {
            let old = || -> Result<bool, CacheError> {
                let Some(part) = part_in(&workshop.images, &name.to_string_lossy())? else { return Ok(true) };
                let mut block = [0; BLOCK_SIZE];
                let whole = part.file.read_exact_at(&mut block, 0).is_ok();
                Ok(!whole || check_superblock(&block, part.bytes))
            };
            if !kept.contains(&self.path.join("images").join(&name)) && old()? {
                workshop.remove_unlocked(&workshop.images, &name, &mut done)?;
            }
        }
        for name in names(&workshop.layers)? {
            let path = Path::new(&name);
            let half = match path.extension().and_then(OsStr::to_str) {
                Some("data") => workshop.layers.read(path.with_extension("changes"))?.is_none(),
                Some("changes") => workshop.layers.read(path.with_extension("data"))?.is_none(),
                _ => false,
            };
            if half && !kept.contains(&self.path.join("layers").join(&name)) {
                workshop.remove_unlocked(&workshop.layers, &name, &mut done)?;
            }
        }
        Ok(done)
    }
}

fn names(dir: &TrustedDir) -> Result<Vec<std::ffi::OsString>, CacheError> {
    Ok(dir.names().map_err(|source| io_error("read", dir.path(), source))?)
}

impl Workshop {
    /// Removes a file `KEY.SUFFIX`, unless another process holds the lock of the key.
    fn remove_unlocked(&self, dir: &TrustedDir, name: &OsStr, done: &mut Removed) -> Result<(), CacheError> {
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        let Ok(key) = format!("sha256:{stem}").parse() else { return Ok(()) };
        let Some(_lock) = self.lock(&key, &mut || true)? else { return Ok(()) };
        Ok(done.remove(dir, name)?)
    }
}

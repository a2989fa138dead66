//! Removing what no image needs.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use serde::Deserialize;

use super::adding::lock_index;
use super::remove::InUse;
use super::removing::Removing;
use super::{LocalError, LocalStore, read_index};
use crate::digest::Digest;
use crate::lock::try_lock;
use crate::removed::Removed;
use crate::trusted::{TrustedDir, io_error};

/// Unfinished blobs that nobody has continued for this long are removed.
const PARTIAL_AGE: Duration = Duration::from_hours(24);
/// Most bytes of a manifest that is read for what it needs.
const JSON_MAX: u64 = 4 << 20;

/// The parts of an index and of a manifest that lead to other blobs.
#[derive(Default, Deserialize)]
struct Links {
    #[serde(default)]
    config: Option<Link>,
    #[serde(default)]
    layers: Vec<Link>,
    #[serde(default)]
    manifests: Vec<Link>,
}

#[derive(Deserialize)]
struct Link {
    digest: String,
}

impl LocalStore {
    fn links(&self, digest: &Digest) -> Result<Links, LocalError> {
        let Some(text) = self.read_blob(digest, JSON_MAX)? else { return Ok(Links::default()) };
        let path = self.blob_path(digest);
        serde_json::from_slice(&text).map_err(|source| LocalError::Index { path, source })
    }

    /// The manifests of an index; none of a manifest.
    pub(super) fn children(&self, digest: &Digest) -> Result<HashSet<Digest>, LocalError> {
        let links = self.links(digest)?;
        Ok(links.manifests.iter().filter_map(|link| link.digest.parse().ok()).collect())
    }

    /// Every blob that the images need which begin with `roots`. Manifests that are absent, as of
    /// other platforms, need nothing.
    fn needed(&self, roots: impl Iterator<Item = Digest>) -> Result<HashSet<Digest>, LocalError> {
        let mut needed = HashSet::new();
        let mut todo: Vec<Digest> = roots.collect();
        while let Some(digest) = todo.pop() {
            if !needed.insert(digest) {
                continue;
            }
            let links = self.links(&digest)?;
            let parse = |link: &Link| link.digest.parse::<Digest>().ok();
            needed.extend(links.config.iter().chain(&links.layers).filter_map(parse));
            todo.extend(links.manifests.iter().filter_map(parse));
        }
        Ok(needed)
    }

    /// Removes the blobs that no image needs, and unfinished ones that are older than a day. If
    /// another process uses the store, only the latter.
    ///
    /// # Errors
    /// [`LocalError`]: the store cannot be read or written; if a manifest is damaged, nothing is
    /// removed, because what it needs is unknown.
    pub fn collect(&self, removing: &Removing, in_use: &InUse) -> Result<Removed, LocalError> {
        let mut done = Removed::default();
        let Some(dir) = &self.dir else { return Ok(done) };
        self.collect_partial(dir, &mut done)?;
        if removing.is_alone() {
            self.collect_blobs(in_use, &|_| true, &mut done)?;
        } else {
            done.busy = true;
        }
        Ok(done)
    }

    /// Removes those of these blobs that no image needs, unless another process uses the store.
    pub(crate) fn take_back(&self, added: &HashSet<Digest>) -> Result<(), LocalError> {
        if !added.is_empty() && self.removing()?.is_alone() {
            let goes = |digest: &Digest| added.contains(digest);
            self.collect_blobs(&InUse::default(), &goes, &mut Removed::default())?;
        }
        Ok(())
    }

    fn collect_blobs(
        &self,
        in_use: &InUse,
        may_go: &dyn Fn(&Digest) -> bool,
        done: &mut Removed,
    ) -> Result<(), LocalError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let _held = lock_index(dir)?;
        let index = read_index(dir)?;
        let listed = index.manifests.iter().map(|entry| self.entry(entry));
        let listed = listed.collect::<Result<Vec<_>, _>>()?;
        let roots = listed.iter().map(|image| image.descriptor.digest).chain(in_use.digests.iter().copied());
        let needed = self.needed(roots)?;
        let Some(blobs) = dir.subdirectory("blobs")? else { return Ok(()) };
        for algorithm in ["sha256", "sha512"] {
            let Some(blobs) = blobs.subdirectory(algorithm)? else { continue };
            let names = blobs.names().map_err(|source| io_error("read", blobs.path(), source))?;
            for name in names {
                let digest: Result<Digest, _> = format!("{algorithm}:{}", name.to_string_lossy()).parse();
                // What is no blob is not ours.
                if digest.is_ok_and(|digest| may_go(&digest) && !needed.contains(&digest)) {
                    done.remove(&blobs, &name)?;
                }
            }
        }
        Ok(())
    }

    fn collect_partial(&self, dir: &TrustedDir, done: &mut Removed) -> Result<(), LocalError> {
        let Some(partial) = dir.subdirectory("partial")? else { return Ok(()) };
        let names = partial.names().map_err(|source| io_error("read", partial.path(), source))?;
        for name in names {
            let Some(file) = partial.read(&name)? else { continue };
            let path = partial.path().join(&name);
            let modified = file.metadata().and_then(|found| found.modified());
            let modified = modified.map_err(|source| io_error("look at", &path, source))?;
            // A clock that went back leaves it for later.
            let old = SystemTime::now().duration_since(modified).is_ok_and(|age| age > PARTIAL_AGE);
            let shown = name.to_string_lossy();
            if old && try_lock(&file, &partial, &shown, FlockOperation::NonBlockingLockExclusive)? {
                done.remove(&partial, &name)?;
            }
        }
        Ok(())
    }
}

//! Removing images: from the local store, and from the cache what was made of them.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{ImagePlan, Store};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::local::{Hold, InUse, LocalError, LocalStore, Removal, Removing};
use crate::merge::{cache_key, group_keys, groups, layer_mark, verified_mark};
use crate::reference::Reference;
use crate::removed::Removed;
use crate::source::{LoadedImage, host_architecture, load_descriptor};

impl Store {
    /// Keeps what is found in the local store and in the cache where it is ([`LocalStore::hold`]).
    ///
    /// # Errors
    /// The directory of the local store cannot be used. `None` if the options name none.
    pub fn hold(&self, waits: &mut dyn FnMut(Option<u32>)) -> Result<Option<Hold>, ImageError> {
        let hold = |local: LocalStore| local.hold(waits).map_err(|source| self.local_error(source));
        self.local()?.map(hold).transpose()
    }

    /// Begins a removal ([`LocalStore::removing`]).
    ///
    /// # Errors
    /// The directory of the local store cannot be used, or the options name none.
    pub fn removing(&self) -> Result<Removing, ImageError> {
        let none = || self.local_error(LocalError::NoImage(String::new()));
        let local = self.local()?.ok_or_else(none)?;
        local.removing().map_err(|source| self.local_error(source))
    }

    /// Removes an image of the local store by its name or id ([`crate::LocalStore::remove`]), and
    /// then, if it has no other name, its blobs and the files of the cache that no other image
    /// needs. While others use the store, the files stay.
    ///
    /// # Errors
    /// [`ImageError::Local`]: there is no such image, or a sandbox uses it; or an error of the
    /// directories.
    pub fn remove(
        &self,
        word: &str,
        force: bool,
        removing: &Removing,
        in_use: &InUse,
    ) -> Result<(Removal, Removed), ImageError> {
        let none = || self.local_error(LocalError::NoImage(word.to_owned()));
        let local = self.local()?.ok_or_else(none)?;
        let local_error = |source| self.local_error(source);
        let found = local.look_up(word).map_err(local_error)?;
        let descriptor = found.image.descriptor.clone();
        // Of an image that is damaged or for another platform nothing is in the cache.
        let arch = host_architecture();
        let loaded = load_descriptor(&local, &descriptor, arch, &self.options.limits).ok();
        let removal = local.remove(word, force, in_use).map_err(local_error)?;
        let mut done = Removed::default();
        if removal.digest.is_some() {
            done = local.collect(removing, in_use).map_err(local_error)?;
            if let Some(loaded) = loaded.filter(|_| removing.is_alone()) {
                let (files, marks) = self.cache_files(&loaded);
                let (kept, kept_marks) = self.needed_files(in_use)?;
                let goes = |path: &PathBuf| files.contains(path) && !kept.contains(path);
                let mark_goes = |mark: &Digest| marks.contains(mark) && !kept_marks.contains(mark);
                let removed = self.cache.remove_files(&goes, &mark_goes);
                done.add(removed.map_err(|source| self.cache_error(source))?);
            }
        }
        Ok((removal, done))
    }

    /// Removes images without a name from the local store (with `all`, every image that no sandbox
    /// uses), blobs that no image needs, unfinished downloads older than a day, and from the cache
    /// what older versions of this program made (with `all`, everything that no image of the local
    /// store, no sandbox and not the built-in image needs). Returns the digests of the removed
    /// images. While others use the store, only names are removed.
    ///
    /// # Errors
    /// [`ImageError`]: a directory cannot be read or written, or a manifest is damaged.
    pub fn prune(
        &self,
        all: bool,
        removing: &Removing,
        in_use: &InUse,
    ) -> Result<(Vec<Digest>, Removed), ImageError> {
        let (mut removed, mut done) = (Vec::new(), Removed::default());
        if let Some(local) = self.local()? {
            let local_error = |source| self.local_error(source);
            removed = local.remove_unused(all, in_use).map_err(local_error)?;
            done = local.collect(removing, in_use).map_err(local_error)?;
        }
        if !removing.is_alone() {
            done.busy = true;
            return Ok((removed, done));
        }
        let cleaned = if all {
            let (kept, marks) = self.needed_files(in_use)?;
            self.cache.remove_files(&|path| !kept.contains(path), &|mark| !marks.contains(mark))
        } else {
            self.cache.remove_old(&in_use.paths)
        };
        done.add(cleaned.map_err(|source| self.cache_error(source))?);
        Ok((removed, done))
    }

    /// What [`Store::plan`] says of an image whose manifest or index this is.
    ///
    /// # Errors
    /// As [`Store::plan`].
    pub fn plan_stored(&self, digest: &Digest) -> Result<ImagePlan, ImageError> {
        self.plan(&Reference::Id(*digest))
    }

    /// The files of the cache that belong to an image, and the marks that it and its layers were
    /// verified.
    fn cache_files(&self, loaded: &LoadedImage) -> (HashSet<PathBuf>, HashSet<Digest>) {
        let layer_keys = group_keys(&groups(&loaded.layers));
        let mut paths = self.cache.image_paths(&cache_key(&loaded.layers), &layer_keys);
        let changes: Vec<PathBuf> = paths[1..].iter().map(|path| path.with_extension("changes")).collect();
        paths.extend(changes);
        let mut marks: HashSet<Digest> = loaded.layers.iter().filter_map(layer_mark).collect();
        marks.insert(verified_mark(&loaded.digest, &loaded.layers));
        (paths.into_iter().collect(), marks)
    }

    /// The files of the cache that the images of the local store, the built-in image and sandboxes
    /// need, and the marks of these images.
    fn needed_files(&self, in_use: &InUse) -> Result<(HashSet<PathBuf>, HashSet<Digest>), ImageError> {
        let mut files = in_use.paths.clone();
        let mut marks = HashSet::new();
        let mut keep = |loaded: &LoadedImage| {
            let (more, more_marks) = self.cache_files(loaded);
            files.extend(more);
            marks.extend(more_marks);
        };
        if let Some(local) = self.local()? {
            for image in local.list().map_err(|source| self.local_error(source))? {
                let arch = host_architecture();
                // What cannot be loaded has nothing in the cache.
                if let Ok(loaded) = load_descriptor(&local, &image.descriptor, arch, &self.options.limits) {
                    keep(&loaded);
                }
            }
        }
        if let Ok((_, loaded)) = self.load(&Reference::BuiltinBusybox, &mut || false) {
            keep(&loaded);
        }
        Ok((files, marks))
    }
}

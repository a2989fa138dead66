//! The image of a `rootfs:` directory, which is made anew each time.

use std::path::Path;

use super::build::uuid;
use super::{Image, Store, rootfs_config, rootfs_error};
use crate::erofs::{Budget, Contents, WriteError};
use crate::error::ImageError;
use crate::health::RawConfig;
use crate::progress::{ImageStage, Progress, Watch};
use crate::reference::Reference;
use crate::rootfs;
use crate::tree::Tree;

impl Store {
    pub(super) fn resolve_rootfs(
        &self,
        reference: &Reference,
        dir: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let failed = |source| rootfs_error(reference, source);
        let cache_error = |source| self.cache_error(source);
        let write_error = |source| self.write_error(reference, source);
        let root = rootfs::open(dir).map_err(failed)?;
        let workshop = self.cache.prepare().map_err(cache_error)?;
        let data = workshop.scratch("rootfs").map_err(cache_error)?;
        let budget = Budget { limit: self.options.limits.disk_bytes, used: 0, room: self.room(&workshop)? };
        let file = data.file.try_clone().map_err(|source| write_error(WriteError::Io(source)))?;
        let mut contents = Contents::new(file, 0, budget);
        let mut tree = Tree::new(&self.options.limits);
        let mut watch = Watch::begin(progress, ImageStage::Rootfs, None);
        rootfs::read(&root, dir, &mut tree, &mut contents, &mut |done| watch.tick(done)).map_err(failed)?;
        watch.end();
        let data_bytes = contents.complete().map_err(write_error)?.bytes;
        let metadata = workshop.scratch("rootfs").map_err(cache_error)?;
        let (digest, config) = rootfs_config();
        let disk_bytes =
            self.metadata(reference, &metadata, &tree, &[data_bytes], uuid(&digest), progress)?;
        let mut disk = vec![metadata.read_only().map_err(cache_error)?];
        if data_bytes > 0 {
            disk.push(data.read_only().map_err(cache_error)?);
        }
        let raw_config = RawConfig::default();
        Ok(Image { digest, config, raw_config, disk, disk_bytes, disk_paths: Vec::new(), cached: false })
    }
}

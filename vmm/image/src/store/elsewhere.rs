//! Resolving with an unpacker, and the unpacker's part of it.

use std::io::{self, Write};
use std::os::fd::AsFd;

use super::{Image, Store, StoreOptions};
use crate::cache::Cache;
use crate::error::{ImageError, UnpackerError};
use crate::health::RawConfig;
use crate::merge::keys_of;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::source::load_config;
use crate::unpacker::{Order, Telling, Unpacked, Unpacker};

impl Store {
    /// As [`Store::resolve`], but what is in layers and in tar files is not read by this process.
    pub(super) fn resolve_elsewhere(
        &self,
        unpacker: &Unpacker,
        reference: &Reference,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let is_archive = matches!(reference, Reference::OciArchive { .. } | Reference::DockerArchive { .. });
        if !is_archive {
            let (_, loaded) = self.load(reference, &mut || progress.cancelled())?;
            if let Some(image) = self.cached(&loaded)? {
                return Ok(image);
            }
        }
        let order = Order {
            reference: reference.clone(),
            cache: self.options.cache_dir.clone(),
            local: self.options.local_dir.clone(),
            builtin: self.options.builtin.clone(),
            limits: self.options.limits,
        };
        let Unpacked { digest, config, cached } = unpacker.unpack(&order, progress)?;
        let lied = |how| ImageError::Unpacker {
            reference: Box::new(reference.clone()),
            source: UnpackerError::Lied(how),
        };
        let digest = digest.parse().map_err(|_| lied("gave no digest of it"))?;
        let (parsed, diff_ids) =
            load_config(config.as_bytes()).map_err(|_| lied("gave no configuration of it"))?;
        let (key, layer_keys) = keys_of(&diff_ids);
        // It may not have existed before.
        let cache_error = |source| self.cache_error(source);
        let found = Cache::open(&self.options.cache_dir)
            .and_then(|cache| cache.find(&key, &layer_keys))
            .map_err(cache_error)?;
        let files = found.ok_or_else(|| lied("it is not in the cache"))?;
        Ok(Image {
            digest,
            config: parsed,
            raw_config: RawConfig::new(config.into_bytes()),
            disk: files.files,
            disk_bytes: files.bytes,
            disk_paths: files.paths,
            cached,
        })
    }

    /// Carries out the order of a program that waits for it, in a process that is there for this
    /// alone: reports go to `out`; when `caller` can be read or is closed, nobody waits any more.
    /// Whether the image is in the cache.
    ///
    /// # Errors
    /// `out` cannot be written to.
    pub fn carry_out(order: &Order, out: impl Write, caller: impl AsFd) -> io::Result<bool> {
        let mut telling = Telling::new(out, caller);
        let result = Self::unpack(order, &mut telling);
        telling.end(&result)?;
        Ok(result.is_ok())
    }

    fn unpack(order: &Order, progress: &mut dyn Progress) -> Result<Unpacked, ImageError> {
        let mut options = StoreOptions::new(&order.cache);
        options.local_dir.clone_from(&order.local);
        options.builtin.clone_from(&order.builtin);
        options.limits = order.limits;
        let image = Self::open(options)?.resolve(&order.reference, progress)?;
        let config = String::from_utf8_lossy(image.raw_config.text()).into_owned();
        Ok(Unpacked { digest: image.digest.to_string(), config, cached: image.cached })
    }
}

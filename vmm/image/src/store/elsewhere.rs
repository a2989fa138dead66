//! Resolving with an unpacker, and the unpacker's part of it.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::{Image, Store, StoreOptions};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::{ImageError, UnpackerError};
use crate::health::RawConfig;
use crate::limits::Limits;
use crate::merge::keys_of;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::source::{LoadedImage, load_config};
use crate::unpacker::{Order, Telling, Unpacked, Unpacker};

/// How often an image is unpacked that another process removes from the cache meanwhile.
const TRIES: usize = 3;

/// What is known of an image that is to be in the cache.
#[derive(Clone)]
struct Known {
    digest: Digest,
    config: ImageConfiguration,
    raw_config: RawConfig,
    diff_ids: Vec<Digest>,
}

impl Known {
    /// What this process has read and verified.
    fn of_loaded(loaded: LoadedImage) -> Self {
        let LoadedImage { digest, config, raw_config, layers, .. } = loaded;
        Self { digest, config, raw_config, diff_ids: layers.iter().map(|layer| layer.diff_id).collect() }
    }

    /// What an unpacker says of an archive, of which this process reads nothing.
    fn of_archive(unpacked: Unpacked, limits: &Limits) -> Result<Self, &'static str> {
        let digest = unpacked.digest.parse().map_err(|_| "it gave no digest of it")?;
        let raw = unpacked.config.into_bytes();
        if u64::try_from(raw.len()).is_ok_and(|len| len > limits.json_bytes) {
            return Err("its configuration is over the limit `json_bytes`");
        }
        let (config, diff_ids) = load_config(&raw).map_err(|_| "it gave no configuration of it")?;
        if diff_ids.len() > limits.layers {
            return Err("it has more layers than the limit `layers` allows");
        }
        Ok(Self { digest, config, raw_config: RawConfig::new(raw), diff_ids })
    }
}

/// The reference as the unpacker understands it, whose standard input is another.
fn settled(reference: &Reference) -> Reference {
    let settle = |file: &PathBuf| {
        let of_this_process = ["/dev", "/proc"].iter().any(|place| file.starts_with(place));
        let found = of_this_process.then(|| Path::canonicalize(file).ok()).flatten();
        found.unwrap_or_else(|| file.clone())
    };
    match reference {
        Reference::OciArchive { file, tag } => Reference::OciArchive { file: settle(file), tag: tag.clone() },
        Reference::DockerArchive { file, tag } => {
            Reference::DockerArchive { file: settle(file), tag: tag.clone() }
        }
        other => other.clone(),
    }
}

impl Store {
    /// As [`Store::resolve`], but what is in layers and in tar files is not read by this process.
    pub(super) fn resolve_elsewhere(
        &self,
        unpacker: &Unpacker,
        reference: &Reference,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let is_archive = matches!(reference, Reference::OciArchive { .. } | Reference::DockerArchive { .. });
        let mut known = None;
        if !is_archive {
            let (_, loaded) = self.load(reference, &mut || progress.cancelled())?;
            if let Some(image) = self.cached(&loaded)? {
                return Ok(image);
            }
            known = Some(Known::of_loaded(loaded));
        }
        let order = Order {
            reference: settled(reference),
            cache: self.options.cache_dir.clone(),
            local: self.options.local_dir.clone(),
            builtin: self.options.builtin.clone(),
            limits: self.options.limits,
        };
        let lied = |how| ImageError::Unpacker {
            reference: Box::new(reference.clone()),
            source: UnpackerError::Lied(how),
        };
        for _ in 0..TRIES {
            let unpacked = unpacker.unpack(&order, progress)?;
            let cached = unpacked.cached;
            let known = match &known {
                Some(known) => known.clone(),
                None => Known::of_archive(unpacked, &self.options.limits).map_err(lied)?,
            };
            let (key, layer_keys) = keys_of(&known.diff_ids);
            // It may not have existed before.
            let found = Cache::open(&self.options.cache_dir).and_then(|cache| cache.find(&key, &layer_keys));
            let Some(files) = found.map_err(|source| self.cache_error(source))? else {
                continue;
            };
            let Known { digest, config, raw_config, .. } = known;
            return Ok(Image {
                digest,
                config,
                raw_config,
                disk: files.files,
                disk_bytes: files.bytes,
                disk_paths: files.paths,
                cached,
            });
        }
        Err(lied("it is not in the cache"))
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

//! `nelly image`: the images of the local store.

mod archive;
pub(crate) mod args;
mod change;
mod disks;
mod engine;
mod list;
mod show;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use args::ImageVerb;
use nelly_fetch::Source;
use nelly_image::{Digest, InUse, LocalError, LocalStore, Reference, Store, StoreOptions};

use nelly_sandbox::state::Sandboxes;

use crate::assets;
use crate::context::Context;
use crate::fail::OfFlag as _;
use crate::{fetch, registry};

/// Runs a verb.
pub(crate) fn run(verb: &ImageVerb, context: &Context) -> Result<ExitCode> {
    match verb {
        ImageVerb::Pull(args) if Source::is_meant(&args.name) => fetch::pull(args, context),
        ImageVerb::Pull(args) => {
            fetch::refuse_flags(&args.disk)?;
            registry::pull(args, context)
        }
        ImageVerb::Push(args) => registry::push(args, context),
        ImageVerb::Ls(args) => list::ls(args, context),
        ImageVerb::Inspect(args) => show::inspect(args, context),
        ImageVerb::History(args) => show::history(args, context),
        ImageVerb::Tag(args) => change::tag(args, context),
        ImageVerb::Rm(args) => change::rm(args, context),
        ImageVerb::Prune(args) => change::prune(args, context),
        ImageVerb::Load(args) => archive::load(args, context),
        ImageVerb::Save(args) => archive::save(args, context),
    }
}

/// The local store.
fn local(context: &Context) -> Result<LocalStore> {
    Ok(LocalStore::open(context.places.images())?)
}

/// The local store and the cache.
fn store(context: &Context) -> Result<Store> {
    let mut options = StoreOptions::new(&context.places.cache);
    options.local_dir = Some(context.places.images());
    let manifest = assets::manifest(&context.search).ok();
    options.builtin = manifest.map(|(directory, manifest)| directory.join(manifest.builtin));
    Ok(Store::open(options)?)
}

/// What kept sandboxes use, by their records.
///
/// # Errors
/// A record cannot be read: what its sandbox uses is unknown, so nothing may be removed.
fn in_use(context: &Context) -> Result<InUse> {
    let mut in_use = InUse::default();
    let Some(sandboxes) = Sandboxes::open(&context.places.data.join("sandboxes"))? else {
        return Ok(in_use);
    };
    for sandbox in sandboxes.list()? {
        let failed = || format!("cannot tell which image the sandbox {} uses", sandbox.id);
        let details = sandbox.details.with_context(failed)?;
        let further = details.state.containers.into_iter().map(|container| container.image);
        for image in std::iter::once(details.record.image).chain(further) {
            // What the image of a directory has for a digest is not in the store.
            in_use.digests.extend(image.digest.parse::<Digest>());
            in_use.paths.extend(image.disk_paths);
        }
    }
    Ok(in_use)
}

/// What a word names: an image of the local store by name or the beginning of its id, or what `run`
/// takes.
fn reference(local: &LocalStore, word: &str) -> Result<Reference> {
    match local.look_up(word) {
        Ok(found) => Ok(Reference::Id(found.image.descriptor.digest)),
        Err(LocalError::NoImage(_)) => word.parse().of_flag("IMAGE"),
        Err(error) => Err(error.into()),
    }
}

/// Bytes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut tenths_of = bytes.saturating_mul(10);
    let mut unit = "B";
    for next in UNITS {
        if tenths_of < 10_240 {
            break;
        }
        (tenths_of, unit) = (tenths_of / 1024, next);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{}.{} {unit}", tenths_of / 10, tenths_of % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_read_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 20, "5.0 MiB"),
            (3 << 30, "3.0 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u64::MAX).ends_with("TiB"));
    }
}

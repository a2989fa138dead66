//! Images of disks that were fetched, in `nelly image ls` and `rm`.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result, bail};
use nelly_fetch::{KeptDisk, KeptError};
use nelly_sandbox::state::{Sandboxes, Timestamp};
use serde_json::{Value, json};

use super::size;
use crate::boot_disk::DiskFlag;
use crate::context::Context;
use crate::{fetch, out, table};

/// Hexadecimal digits of a short id.
const SHORT: usize = 12;
/// Fewest that name a disk after `sha256:`. Without that a word of digits may be an image's name,
/// and only a whole short id is one of a disk.
const FEWEST: usize = 4;

/// All of them, the youngest first.
pub(super) fn all(context: &Context) -> Result<Vec<KeptDisk>> {
    Ok(fetch::cache(context).list()?)
}

/// The id that is shown.
pub(super) fn id(disk: &KeptDisk, whole: bool) -> String {
    if whole { disk.sha256.to_string() } else { disk.sha256.hex().chars().take(SHORT).collect() }
}

/// A line of JSON.
pub(super) fn row(disk: &KeptDisk) -> Value {
    json!({ "schema": 1, "kind": "disk", "id": disk.sha256.to_string(), "name": disk.name, "path": disk.path,
        "format": format!("{:?}", disk.format).to_lowercase(), "bytes": disk.bytes, "allocated_bytes": disk.allocated })
}

/// Prints the table.
pub(super) fn print(disks: &[KeptDisk], whole: bool) -> Result<()> {
    let mut rows = vec![["DISK", "DISK ID", "FETCHED", "SIZE"].map(str::to_owned)];
    for disk in disks {
        let since = disk.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let time = Timestamp::from_unix_ns(since.saturating_mul(1_000_000_000));
        let day = time.to_string().chars().take(10).collect();
        rows.push([disk.name.clone(), id(disk, whole), day, size(disk.allocated)]);
    }
    for line in table::aligned(&rows) {
        out::line(line)?;
    }
    Ok(())
}

/// The disk that a word names: by its path, its file's name, the beginning of its id, or what it
/// was called where it came from.
///
/// # Errors
/// It names several.
pub(super) fn find(disks: Vec<KeptDisk>, word: &str) -> Result<Option<KeptDisk>> {
    let (hex, fewest) = word.strip_prefix("sha256:").map_or((word, SHORT), |hex| (hex, FEWEST));
    let digits = hex.len() >= fewest && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let named = |disk: &KeptDisk| {
        disk.path == Path::new(word)
            || disk.path.file_name().is_some_and(|name| name == word)
            || digits && disk.sha256.hex().starts_with(hex)
            || disk.name == word
    };
    let mut found: Vec<_> = disks.into_iter().filter(named).collect();
    if found.len() > 1 {
        let paths: Vec<_> = found.iter().map(|disk| disk.path.display().to_string()).collect();
        bail!("{word} names several disks; their paths are: {}", paths.join(", "));
    }
    Ok(found.pop())
}

/// Removes a disk; how many bytes are free then.
///
/// # Errors
/// Something needs it.
pub(super) fn remove(disk: &KeptDisk, context: &Context) -> Result<u64> {
    let file = std::fs::metadata(&disk.path).with_context(|| disk.path.display().to_string())?;
    for (machine, path) in named(context)? {
        let same =
            std::fs::metadata(path).is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()));
        if same {
            let by = format!("machine {machine} boots from it, or has it as a disk");
            return Err(KeptError::InUse { path: disk.path.clone(), by }.into());
        }
    }
    Ok(fetch::cache(context).remove(disk, &|| false)?)
}

/// The files that machines with a keeper name, each with the machine.
fn named(context: &Context) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let Some(sandboxes) = Sandboxes::open(&context.places.data.join("sandboxes"))? else { return Ok(files) };
    for sandbox in sandboxes.list()? {
        let failed = || format!("cannot tell which disks the machine {} uses", sandbox.id);
        let record = sandbox.details.with_context(failed)?.record;
        let Some(boot) = record.boot else { continue };
        let image = boot.image.as_deref().map(DiskFlag::image).transpose().with_context(failed)?;
        let disks = boot.disks.iter().map(|disk| disk.parse::<DiskFlag>().with_context(failed));
        let disks = disks.collect::<Result<Vec<_>>>()?;
        let paths = image.iter().chain(&disks).map(|disk| disk.path().to_owned());
        let paths = paths.chain(boot.base.into_iter().map(|base| base.path));
        files.extend(paths.map(|path| (record.name.to_string(), path)));
    }
    Ok(files)
}

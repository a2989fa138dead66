//! `nelly image tag`, `rm` and `prune`.

use std::process::ExitCode;

use anyhow::Result;
use nelly_image::{ImageError, ImageName, LocalError, Removed};
use serde_json::{Value, json};

use super::args::{PruneArgs, RmArgs, TagArgs};
use super::{disks, in_use, local, size, store};
use crate::context::Context;
use crate::fail::{OfFlag as _, Usage};
use crate::{fail, out};

/// `nelly image tag`.
pub(super) fn tag(args: &TagArgs, context: &Context) -> Result<ExitCode> {
    let name: ImageName = args.name.parse().of_flag("NAME")?;
    if name.digest().is_some() {
        return Err(Usage::error(format!(
            "`{}` has a digest, which an image has by itself; give a tag",
            args.name
        )));
    }
    let local = local(context)?;
    let descriptor = local.look_up(&args.image)?.image.descriptor;
    local.add()?.set_name(Some(&name), &descriptor)?;
    Ok(ExitCode::SUCCESS)
}

/// What is said of blobs that had to stay.
const BUSY: &str = "another process adds images or makes a sandbox, so files that are not needed any more stay; \
                    run `nelly image prune` when it has ended";

fn freed(removed: Removed) -> Result<()> {
    if removed.busy {
        out::message(BUSY);
    }
    out::line(format_args!("freed {} ({} bytes)", size(removed.bytes), removed.bytes))
}

/// `nelly image rm`.
pub(super) fn rm(args: &RmArgs, context: &Context) -> Result<ExitCode> {
    let store = store(context)?;
    // Before what is in use is read: a sandbox that is being made is in use when it is made.
    let removing = store.removing()?;
    let in_use = in_use(context)?;
    let (mut rows, mut total, mut failed) = (Vec::new(), Removed::default(), false);
    for word in &args.images {
        match store.remove(word, args.force, &removing, &in_use) {
            Ok((removal, removed)) => {
                total.add(removed);
                let names: Vec<String> = removal.names.iter().map(ImageName::familiar).collect();
                if !args.json {
                    for name in &names {
                        out::line(format_args!("untagged {name}"))?;
                    }
                    if let Some(digest) = removal.digest {
                        out::line(format_args!("removed {digest}"))?;
                    }
                }
                rows.push(json!({ "schema": 1, "image": word, "untagged": names,
                    "removed": removal.digest.map(|digest| digest.to_string()),
                    "freed_bytes": removed.bytes, "busy": removed.busy }));
            }
            Err(error) => match rm_disk(word, error, args, context) {
                Ok(None) => {}
                Ok(Some((row, bytes))) => {
                    total.bytes += bytes;
                    total.files += 1;
                    rows.push(row);
                }
                // The others are removed nevertheless.
                Err(error) => {
                    failed = true;
                    fail::report(&error, args.json, 1);
                }
            },
        }
    }
    if args.json {
        out::json(Value::Array(rows))?;
    } else if !rows.is_empty() {
        freed(total)?;
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// Removes the fetched disk that a word names which names no image: what is printed of it as JSON,
/// and how many bytes are free then.
fn rm_disk(word: &str, error: ImageError, args: &RmArgs, context: &Context) -> Result<Option<(Value, u64)>> {
    let source = match error {
        ImageError::Local { source, .. } => source,
        other => return Err(other.into()),
    };
    if !matches!(source, LocalError::NoImage(_)) {
        return Err(source.into());
    }
    match disks::find(disks::all(context)?, word)? {
        Some(disk) => {
            let bytes = disks::remove(&disk, context)?;
            if !args.json {
                out::line(format_args!("removed {}", disk.path.display()))?;
            }
            let row = json!({ "schema": 1, "image": word, "untagged": [], "removed": disk.sha256.to_string(),
                "path": disk.path, "freed_bytes": bytes, "busy": false });
            Ok(Some((row, bytes)))
        }
        None if args.force => Ok(None),
        None => Err(source.into()),
    }
}

/// `nelly image prune`.
pub(super) fn prune(args: &PruneArgs, context: &Context) -> Result<ExitCode> {
    let store = store(context)?;
    // As above.
    let removing = store.removing()?;
    let (digests, removed) = store.prune(args.all, &removing, &in_use(context)?)?;
    if args.json {
        let digests: Vec<String> = digests.iter().map(ToString::to_string).collect();
        out::json(json!({ "schema": 1, "removed": digests, "files": removed.files,
            "freed_bytes": removed.bytes, "busy": removed.busy }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for digest in digests {
        out::line(format_args!("removed {digest}"))?;
    }
    freed(removed)?;
    Ok(ExitCode::SUCCESS)
}

//! `nelly disk info`, `check` and `map`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nelly_disk::qcow2::{CheckReport, Compression};
use nelly_disk::{Disk, Extent, ExtentKind};
use serde_json::{Value, json};

use super::args::{CheckArgs, InfoArgs, MapArgs};
use super::{follow, format};
use crate::out;
use crate::progress::Bar;
use crate::table;

pub(super) use crate::image::size;

/// `nelly disk info`.
pub(super) fn info(args: &InfoArgs) -> Result<ExitCode> {
    let format = format(args.format, "--format", &args.file)?;
    let info = nelly_disk::image_info(&args.file, format)?;
    let path = args.file.display().to_string();
    let header = info.header.as_ref();
    let compression = |compression| match compression {
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
    };
    if args.json {
        let qcow2 = header.map(|header| {
            json!({ "version": header.version, "cluster_size_bytes": header.cluster_size(),
                "refcount_bits": 1_u32 << header.refcount_order, "compression": compression(header.compression),
                "backing": header.backing.as_ref().map(|backing| json!({ "name": backing.name, "format": backing.format })),
                "snapshots": header.snapshots, "bitmaps": header.bitmaps, "dirty": header.dirty, "corrupt": header.corrupt })
        });
        out::json(json!({ "schema": 1, "path": path, "format": format.to_string(), "size_bytes": info.size,
            "file_bytes": info.file_bytes, "allocated_bytes": info.allocated_bytes, "qcow2": qcow2 }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![
        ["image".to_owned(), path],
        [
            "format".to_owned(),
            header.map_or_else(|| "raw".to_owned(), |header| format!("qcow2, version {}", header.version)),
        ],
        ["disk".to_owned(), format!("{} ({} bytes)", size(info.size), info.size)],
        [
            "file".to_owned(),
            format!("{}, {} of them allocated", size(info.file_bytes), size(info.allocated_bytes)),
        ],
    ];
    if let Some(header) = header {
        let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
        row(
            "clusters",
            format!(
                "{}, compressed ones with {}",
                size(header.cluster_size()),
                compression(header.compression)
            ),
        );
        row("refcounts", format!("{} bits", 1_u32 << header.refcount_order));
        if let Some(backing) = &header.backing {
            let format = backing.format.as_deref().unwrap_or("of a format that is not said");
            row("backing file", format!("{}, {format}", backing.name));
        }
        for (is, state) in [
            (header.snapshots > 0, "has internal snapshots, so that it can only be read"),
            (header.bitmaps, "has persistent bitmaps, so that it can only be read"),
            (header.dirty, "was not closed, and can only be read until qemu-img check -r all repairs it"),
            (header.corrupt, "is marked as corrupt, and can only be read"),
        ] {
            if is {
                row("state", state.to_owned());
            }
        }
    }
    table::aligned(&rows).into_iter().try_for_each(out::line)?;
    Ok(ExitCode::SUCCESS)
}

/// `nelly disk check`.
pub(super) fn check(args: &CheckArgs) -> Result<ExitCode> {
    let mut bar = Bar::new(args.quiet);
    let checked = nelly_disk::check_image(&args.file, &mut |done, total| {
        // The bar counts MiB.
        bar.show("checking the image", done << 20, Some(total << 20));
    });
    bar.finish();
    let CheckReport { corruptions, leaks, allocated_clusters, compressed_clusters, end_bytes, findings } =
        checked?;
    if args.json {
        out::json(
            json!({ "schema": 1, "path": args.file.display().to_string(), "corruptions": corruptions, "leaks": leaks,
            "allocated_clusters": allocated_clusters, "compressed_clusters": compressed_clusters, "end_bytes": end_bytes,
            "findings": findings }),
        )?;
    } else {
        findings.iter().try_for_each(out::line)?;
        let path = args.file.display();
        match (corruptions, leaks) {
            (0, 0) => out::line(format_args!("{path} has no errors"))?,
            (0, leaks) => out::line(format_args!(
                "{path} has no errors; {} space and {} not used",
                counted(leaks, "cluster takes", "clusters take"),
                if leaks == 1 { "is" } else { "are" }
            ))?,
            (corruptions, leaks) => out::line(format_args!(
                "{path} has {}, and {} not used",
                counted(corruptions, "corruption", "corruptions"),
                counted(leaks, "cluster that is", "clusters that are")
            ))?,
        }
    }
    Ok(if corruptions == 0 { ExitCode::SUCCESS } else { ExitCode::from(crate::FAILED) })
}

/// A number with what it counts.
fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// The ranges of a disk, neighbours that go on together.
struct Ranges<'a> {
    disk: &'a dyn Disk,
    at: u64,
}

impl Ranges<'_> {
    fn one(&self, at: u64) -> std::io::Result<Extent> {
        self.disk.extent(at, self.disk.len() - at)
    }
}

impl Iterator for Ranges<'_> {
    type Item = std::io::Result<(u64, Extent)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (start, end) = (self.at, self.disk.len());
        if start >= end {
            return None;
        }
        let mut whole = match self.one(start) {
            Ok(extent) => extent,
            Err(error) => {
                self.at = end;
                return Some(Err(error));
            }
        };
        while start + whole.len < end {
            // An error is told when it is its turn.
            let Ok(next) = self.one(start + whole.len) else { break };
            let follows = match (whole.host, next.host) {
                (Some(host), Some(next)) => host + whole.len == next,
                (None, None) => true,
                _ => false,
            };
            if (next.kind, next.depth) != (whole.kind, whole.depth) || !follows {
                break;
            }
            whole.len += next.len;
        }
        self.at = start + whole.len;
        Some(Ok((start, whole)))
    }
}

/// `nelly disk map`.
pub(super) fn map(args: &MapArgs) -> Result<ExitCode> {
    let format = format(args.format, "--format", &args.file)?;
    let disk = nelly_disk::open_image(&args.file, format, true, follow(args.backing_anywhere))?;
    let failed = || format!("cannot read {}", args.file.display());
    let kind = |kind| match kind {
        ExtentKind::Data => "data",
        ExtentKind::Compressed => "compressed",
        ExtentKind::Zero => "zero",
    };
    let ranges = Ranges { disk: &*disk, at: 0 };
    if args.json {
        let mut error = None;
        let values = ranges.map_while(|range| match range {
            Ok((start, extent)) => Some(json!({ "schema": 1, "start_bytes": start, "len_bytes": extent.len,
                "kind": kind(extent.kind), "depth": extent.depth, "host_offset_bytes": extent.host })),
            Err(failed) => {
                error = Some(failed);
                None::<Value>
            }
        });
        out::json_array(values)?;
        return error.map_or(Ok(ExitCode::SUCCESS), |error| Err(error).with_context(failed));
    }
    out::line(format_args!("{:<16} {:<16} {:<10} {:<5} HOST OFFSET", "START", "LENGTH", "KIND", "DEPTH"))?;
    for range in ranges {
        let (start, extent) = range.with_context(failed)?;
        let host = extent.host.map_or_else(|| "-".to_owned(), |host| host.to_string());
        let (len, kind, depth) = (extent.len, kind(extent.kind), extent.depth);
        out::line(format_args!("{start:<16} {len:<16} {kind:<10} {depth:<5} {host}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

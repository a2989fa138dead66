//! `nelly disk`: images of disks.

pub(crate) mod args;
mod boot_entries;
mod seed;
mod show;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use args::{ConvertArgs, CreateArgs, DiskVerb, FormatArg, ResizeArgs};
use nelly_disk::qcow2::{self, CreateOptions, Qcow2};
use nelly_disk::{Disk, Follow, Format, ImageError, NewFile, NewImage, RawDisk};
use nelly_sandbox::spec::quantity;
use serde_json::json;

use crate::fail::{Hint, OfFlag as _, Usage};
use crate::out;
use crate::progress::Bar;

/// Runs a verb.
pub(crate) fn run(verb: &DiskVerb) -> Result<ExitCode> {
    match verb {
        DiskVerb::Create(args) => create(args),
        DiskVerb::Info(args) => show::info(args),
        DiskVerb::Resize(args) => resize(args),
        DiskVerb::Convert(args) => convert(args),
        DiskVerb::Check(args) => show::check(args),
        DiskVerb::Map(args) => show::map(args),
        DiskVerb::BootEntries(args) => boot_entries::run(args),
        DiskVerb::Seed(args) => seed::run(args),
    }
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Raw => Self::Raw,
            FormatArg::Qcow2 => Self::Qcow2,
        }
    }
}

/// The format that `flag` names, or else the ending of the file's name. What the file holds says
/// nothing: a guest may have written it.
fn format(named: Option<FormatArg>, flag: &str, path: &Path) -> Result<Format> {
    if let Some(named) = named {
        return Ok(named.into());
    }
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("qcow2") => Ok(Format::Qcow2),
        Some("raw") => Ok(Format::Raw),
        _ => Err(Usage::error(format!(
            "the format of {} is not said by its name: {flag} raw or {flag} qcow2 says it",
            path.display()
        ))),
    }
}

fn follow(anywhere: bool) -> Follow {
    if anywhere { Follow::Anywhere } else { Follow::Beside }
}

fn cluster_bits(text: &str) -> Result<u32> {
    let bytes = quantity::bytes(text).of_flag("--cluster-size")?;
    if !bytes.is_power_of_two() || !(512..=2 << 20).contains(&bytes) {
        return Err(Usage::error(format!(
            "--cluster-size {text:?} is not a power of two from 512 bytes (0.5K) to 2M"
        )));
    }
    Ok(bytes.ilog2())
}

/// An image's error with what to do about it.
fn advised(error: ImageError) -> anyhow::Error {
    let exists = matches!(&error, ImageError::Create { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists);
    if exists {
        let message = nelly_vmm::text::chain(&error);
        return Hint::error(message, "name another file, or remove this one first");
    }
    error.into()
}

fn create(args: &CreateArgs) -> Result<ExitCode> {
    let format = format(args.format, "--format", &args.file)?;
    let size = args.size.as_deref().map(quantity::bytes).transpose().of_flag("SIZE")?;
    let cluster_bits = cluster_bits(&args.cluster_size)?;
    if format == Format::Raw && args.backing.is_some() {
        return Err(Usage::error("--backing: a raw image has no backing file; --format qcow2 has"));
    }
    let backing = args.backing.clone().zip(args.backing_format.map(Format::from));
    let new = NewImage { format, size, cluster_bits, backing };
    let bytes = nelly_disk::create_image(&args.file, &new).map_err(advised)?;
    let path = args.file.display();
    if args.json {
        out::json(
            json!({ "schema": 1, "path": path.to_string(), "format": format.to_string(), "size_bytes": bytes }),
        )?;
    } else {
        out::line(format_args!("created {path}, {format}, {}", show::size(bytes)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn resize(args: &ResizeArgs) -> Result<ExitCode> {
    let format = format(args.format, "--format", &args.file)?;
    let size = quantity::bytes(&args.size).of_flag("SIZE")?;
    let old = nelly_disk::resize_image(&args.file, format, size, follow(args.backing_anywhere))?;
    let path = args.file.display();
    if args.json {
        out::json(
            json!({ "schema": 1, "path": path.to_string(), "old_size_bytes": old, "size_bytes": size }),
        )?;
    } else {
        out::line(format_args!("{path} has {} now, it had {}", show::size(size), show::size(old)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn convert(args: &ConvertArgs) -> Result<ExitCode> {
    let from = format(args.format, "--format", &args.source)?;
    let to = format(args.to, "--to", &args.target)?;
    let cluster_bits = cluster_bits(&args.cluster_size)?;
    let source = nelly_disk::open_image(&args.source, from, true, follow(args.backing_anywhere))?;
    let failed = || format!("cannot create {}", args.target.display());
    let file = NewFile::begin(&args.target)
        .map_err(|source| advised(ImageError::Create { path: args.target.display().to_string(), source }))?;
    let store = file.file().try_clone().with_context(failed)?;
    let target: Box<dyn Disk> = match to {
        Format::Raw => {
            store.set_len(source.len()).with_context(failed)?;
            Box::new(RawDisk::new(store, false).with_context(failed)?)
        }
        Format::Qcow2 => {
            let options = CreateOptions { size: source.len(), cluster_bits, backing: None };
            qcow2::create(Box::new(store.try_clone().with_context(failed)?), &options)
                .with_context(failed)?;
            Box::new(Qcow2::open(Box::new(store), None, false).with_context(failed)?)
        }
    };
    let mut bar = Bar::new(args.quiet);
    let converted = nelly_disk::convert(&*source, &*target, &mut |done, total| {
        bar.show("copying the disk", done, Some(total));
    });
    bar.finish();
    let what = || format!("cannot copy {} to {}", args.source.display(), args.target.display());
    let converted = converted.with_context(what)?;
    drop(target);
    file.finish().with_context(failed)?;
    if args.json {
        out::json(json!({ "schema": 1, "path": args.target.display().to_string(), "format": to.to_string(),
            "size_bytes": converted.bytes, "data_bytes": converted.data_bytes }))?;
    } else {
        let (whole, data) = (show::size(converted.bytes), show::size(converted.data_bytes));
        out::line(format_args!("created {}, {to}, {whole}, {data} of them data", args.target.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

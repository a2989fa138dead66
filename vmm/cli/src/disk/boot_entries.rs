//! `nelly disk boot-entries`: how a cloud image boots, found out without starting it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use nelly_cloud::{BootEntry, FileRef, Found, Wanted};
use serde_json::{Value, json};

use super::args::FormatArg;
use super::{follow, format, show};
use crate::image_plan::{CONSOLE, advised, reader};
use crate::out;
use crate::table;

/// `nelly disk boot-entries`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is started and the image is only read: its partition table, its file systems (ext4, with a journal that was not closed, and \
    vfat), and what its boot loader reads: grub.cfg, loader/entries, extlinux.conf; else the newest /boot/vmlinuz. The entry that a boot takes \
    has an arrow. --extract writes kernel, initrd and cmdline into a new directory.\n\n\
    Examples:\n  \
    nelly disk boot-entries debian-12-genericcloud-amd64.qcow2\n  \
    nelly disk boot-entries --json --format raw disk.img | jq -r .command_line\n  \
    nelly disk boot-entries --extract out debian.raw    kernel, initrd and cmdline, as nelly boot --image debian.raw takes them"
)]
pub(crate) struct BootEntriesArgs {
    /// The image
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Format of the image [default: by the ending .qcow2 or .raw of its name]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<FormatArg>,
    /// Open backing files that lie outside of the directory of the image that names them, too
    #[arg(long)]
    pub(crate) backing_anywhere: bool,
    /// Write kernel, initrd and command line of the entry that is taken into this new directory
    #[arg(long, value_name = "DIR")]
    pub(crate) extract: Option<PathBuf>,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs the verb.
pub(super) fn run(args: &BootEntriesArgs) -> Result<ExitCode> {
    let format = format(args.format, "--format", &args.file)?;
    let chain = nelly_disk::open_chain(&args.file, format, true, follow(args.backing_anywhere))?;
    let find = |outputs: &[&File]| {
        let wanted = Wanted::Plan {
            console: Some(CONSOLE.to_owned()),
            entry: None,
            kernel: !outputs.is_empty(),
            initrd: !outputs.is_empty(),
            below: u64::MAX,
        };
        reader()?.plan(&chain, &wanted, outputs).map_err(|error| advised(error, &args.file))
    };
    let found = match &args.extract {
        Some(directory) => extract(find, directory)?,
        None => find(&[])?,
    };
    if args.json {
        out::json(as_json(&found, &args.file))?;
    } else {
        lines(&found)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn file(image: &Found, file: &FileRef) -> Value {
    let partition = image.places[file.slot].number;
    json!({ "path": file.path, "partition": partition, "size_bytes": file.bytes })
}

fn entry(image: &Found, entry: &BootEntry) -> Value {
    json!({ "title": entry.title, "id": entry.id, "kernel": file(image, &entry.kernel),
        "initrds": entry.initrds.iter().map(|initrd| file(image, initrd)).collect::<Vec<_>>(),
        "command_line": entry.command_line, "source": entry.source })
}

fn as_json(image: &Found, path: &Path) -> Value {
    let plan = &image.plan;
    let partitions = image.places.iter().enumerate().map(|(index, place)| {
        let file_system = place.file_system.as_ref();
        let is = |role: Option<usize>| role == Some(index);
        json!({ "number": place.number, "start_bytes": place.start, "size_bytes": place.bytes,
            "type": place.kind, "partuuid": place.partuuid,
            "file_system": file_system.map(|(kind, ..)| kind), "label": file_system.map(|(_, label, _)| label),
            "uuid": file_system.map(|(.., uuid)| uuid), "root": is(image.root), "boot": is(image.boot), "esp": is(image.esp) })
    });
    let drivers: Vec<Value> = plan
        .drivers
        .needed
        .iter()
        .map(|driver| json!({ "name": driver.name, "place": driver.place.to_string() }))
        .collect();
    json!({ "schema": 1, "path": path.display().to_string(), "table": image.table,
        "partitions": partitions.collect::<Vec<_>>(), "loader": plan.loader.to_string(), "chosen": plan.chosen,
        "entries": plan.entries.iter().map(|found| entry(image, found)).collect::<Vec<_>>(), "command_line": plan.command_line,
        "release": plan.drivers.release, "drivers": drivers, "looked_for": plan.looked_for, "notes": plan.notes })
}

fn lines(image: &Found) -> Result<()> {
    let plan = &image.plan;
    let mut rows = Vec::new();
    for (index, found) in plan.entries.iter().enumerate() {
        let mark = if index == plan.chosen { "->" } else { "" };
        rows.push([mark.to_owned(), found.title.clone(), found.kernel.path.clone()]);
    }
    table::aligned(&rows).into_iter().try_for_each(out::line)?;
    out::line("")?;
    let taken = plan.entry();
    let shown = |file: &FileRef| format!("{}, {}", image.shown(file), show::size(file.bytes));
    let mut rows =
        vec![["source".to_owned(), taken.source.clone()], ["kernel".to_owned(), shown(&taken.kernel)]];
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    taken.initrds.iter().for_each(|initrd| row("initrd", shown(initrd)));
    row("command line", plan.command_line.clone());
    if let Some(release) = &plan.drivers.release {
        row("release", release.clone());
    }
    for driver in &plan.drivers.needed {
        row("driver", format!("{}: {}", driver.name, driver.place));
    }
    plan.notes.iter().for_each(|note| row("note", note.clone()));
    for driver in plan.drivers.missing() {
        let kernel = plan.drivers.release.as_deref().unwrap_or("the kernel");
        row("warning", format!("{kernel} finds no disk of the machine: {} is {}", driver.name, driver.place));
    }
    table::aligned(&rows).into_iter().try_for_each(out::line)?;
    Ok(())
}

/// Has the image read, and what it boots written into a new directory.
fn extract(find: impl FnOnce(&[&File]) -> Result<Box<Found>>, directory: &Path) -> Result<Box<Found>> {
    let failed = || format!("cannot create {}", directory.display());
    std::fs::create_dir(directory).with_context(failed)?;
    let written = (|| {
        let create = |name: &str| File::create_new(directory.join(name)).with_context(failed);
        let found = find(&[&create("kernel")?, &create("initrd")?])?;
        writeln!(create("cmdline")?, "{}", found.plan.command_line).with_context(failed)?;
        Ok(found)
    })();
    if written.is_err() {
        // It was made above, so that nothing of others is in it; what fails here stays.
        let _ = std::fs::remove_dir_all(directory);
    }
    written
}

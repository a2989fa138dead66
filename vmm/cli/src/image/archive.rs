//! `nelly image load` and `save`.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use nelly_image::{ArchiveFormat, Input, Limits, LocalStore, StoredImage};
use nelly_vmm::sys::files::{self, Accept};
use serde_json::{Value, json};

use super::args::{FormatArg, LoadArgs, SaveArgs};
use super::local;
use crate::context::Context;
use crate::fail::{Hint, OfFlag as _};
use crate::out;
use crate::progress::Bar;

/// `nelly image load`.
pub(super) fn load(args: &LoadArgs, context: &Context) -> Result<ExitCode> {
    let name = args.name.as_deref().map(str::parse).transpose().of_flag("--name")?;
    let local = local(context)?;
    let mut bar = Bar::new(args.quiet);
    let limits = Limits::default();
    let unpacker = context.search.unpacker();
    let loaded = if let Some(engine) = args.from {
        let mut saving = engine.begin(&args.images)?;
        let loaded =
            local.load(Input::Stream(&mut saving), name.as_ref(), &limits, Some(&unpacker), &mut bar);
        loaded.with_context(|| format!("cannot load {}", args.images.join(" ")))?
    } else if let Some(path) = &args.input {
        let what = || format!("cannot load {}", path.display());
        // A FIFO is read as a pipe is.
        if files::open(path, OpenOptions::new().read(true), Accept::Stream)
            .with_context(what)?
            .metadata()?
            .is_file()
        {
            local
                .load(Input::File(path), name.as_ref(), &limits, Some(&unpacker), &mut bar)
                .with_context(what)?
        } else {
            let mut stream = File::open(path).with_context(what)?;
            local
                .load(Input::Stream(&mut stream), name.as_ref(), &limits, Some(&unpacker), &mut bar)
                .with_context(what)?
        }
    } else {
        let mut input = std::io::stdin().lock();
        if input.is_terminal() {
            return Err(Hint::error(
                "no archive is given: standard input is a terminal",
                "nelly image load -i FILE, or docker save NAME | nelly image load",
            ));
        }
        local
            .load(Input::Stream(&mut input), name.as_ref(), &limits, Some(&unpacker), &mut bar)
            .context("cannot load standard input")?
    };
    bar.finish();
    if args.json {
        let row = |image: &StoredImage| {
            json!({ "schema": 1, "id": image.descriptor.digest.to_string(),
                "name": image.name.as_ref().map(|name| name.familiar()) })
        };
        out::json(Value::Array(loaded.iter().map(row).collect()))?;
        return Ok(ExitCode::SUCCESS);
    }
    for image in loaded {
        let digest = image.descriptor.digest;
        match image.name {
            _ if args.quiet => out::line(digest)?,
            Some(name) => out::line(format_args!("loaded {}", name.familiar()))?,
            None => out::line(format_args!("loaded {digest}, which has no name; see nelly image tag"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `nelly image save`.
pub(super) fn save(args: &SaveArgs, context: &Context) -> Result<ExitCode> {
    let local = local(context)?;
    let found = args.images.iter().map(|word| Ok(local.look_up(word)?.image));
    let images = found.collect::<Result<Vec<_>>>()?;
    let format = match args.format {
        FormatArg::Oci => ArchiveFormat::Oci,
        FormatArg::Docker => ArchiveFormat::Docker,
    };
    let Some(path) = &args.output else {
        let mut output = std::io::stdout().lock();
        if output.is_terminal() {
            return Err(Hint::error(
                "the archive is not written to a terminal",
                "name a file with -o, or redirect standard output",
            ));
        }
        write(&local, &images, format, &mut output, args.quiet)?;
        return Ok(ExitCode::SUCCESS);
    };
    let failed = || format!("-o: cannot write {}", path.display());
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut file =
            files::open(path, OpenOptions::new().write(true), Accept::Stream).with_context(failed)?;
        write(&local, &images, format, &mut file, args.quiet)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The file has its name when it is whole.
    let unfinished = beside(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(&unfinished).with_context(failed)?;
    let written = write(&local, &images, format, &mut file, args.quiet)
        .and_then(|()| std::fs::rename(&unfinished, path).with_context(failed));
    if written.is_err() {
        // The error is told; the rest of the file is of no use.
        let _ = std::fs::remove_file(&unfinished);
    }
    written.map(|()| ExitCode::SUCCESS)
}

/// A name in the same directory.
fn beside(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else { bail!("-o: {} is not a file", path.display()) };
    let mut unfinished = std::ffi::OsString::from(".");
    unfinished.push(name);
    unfinished.push(format!(".{}", std::process::id()));
    Ok(path.with_file_name(unfinished))
}

fn write(
    local: &LocalStore,
    images: &[StoredImage],
    format: ArchiveFormat,
    out: &mut dyn Write,
    quiet: bool,
) -> Result<()> {
    let mut bar = Bar::new(quiet);
    let mut out = BufWriter::with_capacity(1 << 20, out);
    match local.save(images, format, &mut out, &Limits::default(), &mut bar) {
        // The reader had enough, as of `nelly config show | head -1`.
        Err(nelly_image::TransferError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        saved => Ok(saved?),
    }
}

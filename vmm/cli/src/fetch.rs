//! Images of disks from URLs: `nelly image pull URL`, `nelly boot --image URL`, and what the
//! machines of the Hydra scripts need.

use std::io::{IsTerminal as _, Read as _, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nelly_fetch::{DiskCache, DiskFormat, FetchError, Fetcher, Packing, Source, Stage, Wanted, Watch};
use nelly_image::{Digest, Unpacker};
use nelly_registry::{Client, FileCredentials, RegistryError};
use nelly_sandbox::spec::quantity;
use serde_json::json;

use crate::boot_args::BootArgs;
use crate::boot_disk;
use crate::context::Context;
use crate::fail::{Hint, OfFlag as _, Usage};
use crate::progress::Bar;
use crate::registry::args::{DiskPullArgs, PullArgs};
use crate::{out, registry};

/// The variable with what a server is shown.
const CREDENTIALS: &str = "NELLY_CREDENTIALS";
/// Most bytes of such a thing.
const CREDENTIALS_MAX: u64 = 64 << 10;
/// Most bytes of a disk that is fetched without being told more.
const MOST: u64 = 64 << 30;

/// What fetches.
pub(crate) struct Fetching {
    client: Client,
    unpacker: Unpacker,
    bar: FetchBar,
}

impl Fetching {
    /// By the settings and the environment; without progress if `quiet` is set.
    pub(crate) fn new(context: &Context, quiet: bool) -> Self {
        let bar = FetchBar { bar: Bar::new(quiet), quiet };
        Self { client: registry::client(context), unpacker: context.search.unpacker(), bar }
    }

    /// Fetches a file to `target`.
    ///
    /// # Errors
    /// As [`Fetcher::save`].
    pub(crate) fn save(&mut self, wanted: &Wanted<'_>, target: &Path) -> Result<(), FetchError> {
        self.bar.begins(wanted.source);
        let fetcher = Fetcher { client: &self.client, unpacker: &self.unpacker };
        let saved = fetcher.save(wanted, target, &mut self.bar);
        self.bar.bar.finish();
        saved.map(drop)
    }
}

/// Shows how far a fetch is.
struct FetchBar {
    bar: Bar,
    quiet: bool,
}

impl FetchBar {
    fn begins(&self, source: &Source) {
        if !self.quiet && !stderr().is_terminal() {
            out::note(format_args!("fetching {}\n", source.shown()));
        }
    }
}

impl Watch for FetchBar {
    fn at(&mut self, stage: Stage, done: u64, total: Option<u64>) {
        let text = match stage {
            Stage::Elsewhere => "waiting for another process that fetches it",
            Stage::Download => "fetching",
            Stage::Verify => "comparing checksums",
            Stage::Unpack => "unpacking",
        };
        self.bar.show(text, done, total);
    }
}

/// An order for a disk's image, without flags.
pub(crate) fn wanted(source: &Source) -> Wanted<'_> {
    Wanted { source, credentials: None, checksum: None, packing: None, member: None, most: MOST, disk: true }
}

/// `nelly image pull` of a URL or a path.
pub(crate) fn pull(args: &PullArgs, context: &Context) -> Result<ExitCode> {
    if args.platform.is_some() {
        return Err(Usage::error("--platform is for images of registries, and not for those of disks"));
    }
    let flags = &args.disk;
    let source = source(&args.name, context).of_flag("URL")?;
    let checksum = flags.checksum.as_deref().map(str::parse::<Digest>).transpose().of_flag("--checksum")?;
    let packing = flags.unpack.as_deref().map(str::parse::<Packing>).transpose();
    let packing = packing.map_err(|why| Usage::error(format!("--unpack {why}")))?;
    let format = flags.format.as_deref().map(disk_format).transpose()?;
    let most = quantity::bytes(&flags.max_size).of_flag("--max-size")?;
    let credentials = credentials(flags.credentials.as_deref())?;
    let wanted = Wanted {
        credentials: credentials.as_ref(),
        checksum: checksum.as_ref(),
        packing,
        member: flags.member.as_deref(),
        most,
        ..wanted(&source)
    };
    let mut fetching = Fetching::new(context, args.quiet);
    fetching.bar.begins(&source);
    let fetcher = Fetcher { client: &fetching.client, unpacker: &fetching.unpacker };
    let (path, format, sha256, bytes, fresh) = match &flags.output {
        Some(target) => {
            let saved =
                fetcher.save(&wanted, target, &mut fetching.bar).map_err(|error| failed(error, &source))?;
            (saved.path, None, saved.sha256, saved.bytes, true)
        }
        None => {
            let pulled = cache(context).pull(&fetcher, &wanted, format, &mut fetching.bar);
            let there = pulled.map_err(|error| failed(error, &source))?;
            (there.path, Some(there.format.word()), there.sha256, there.bytes, there.fresh)
        }
    };
    fetching.bar.bar.finish();
    if args.json {
        out::json(json!({ "schema": 1, "path": path, "format": format, "digest": sha256.to_string(),
            "size_bytes": bytes, "fetched": fresh }))?;
    } else {
        out::line(path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses flags for disks where the image of a registry is named.
///
/// # Errors
/// One of them is there.
pub(crate) fn refuse_flags(flags: &DiskPullArgs) -> Result<()> {
    let given = [
        ("--output", flags.output.is_some()),
        ("--checksum", flags.checksum.is_some()),
        ("--unpack", flags.unpack.is_some()),
        ("--member", flags.member.is_some()),
        ("--format", flags.format.is_some()),
        ("--credentials", flags.credentials.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Usage::error(format!(
            "{flag} is for the image of a disk, which a URL or a path names; a path begins with / or ./"
        ))),
        None => Ok(()),
    }
}

/// The same flags of `nelly boot`, with the image of a URL as the file that was fetched; `None` if
/// it is none.
///
/// # Errors
/// It cannot be fetched.
pub(crate) fn image(args: &BootArgs, context: &Context) -> Result<Option<BootArgs>> {
    if !args.machine.dry_run {
        for disk in &args.disk {
            note_overlay(disk, &cache(context))?;
        }
    }
    let Some(text) = args.image.as_deref() else { return Ok(None) };
    let mut words = boot_disk::split(text);
    let word = words.remove(0);
    let refused = |why: &str| Usage::error(format!("--image {word}: {why}"));
    let sums: Vec<String> = words.extract_if(.., |word| word.starts_with("checksum=")).collect();
    // Of an overlay over an image that is kept it is remembered that it needs it.
    let overlay = words.iter().find_map(|word| word.strip_prefix("overlay=")).map(PathBuf::from);
    let overlay = overlay.filter(|_| !args.machine.dry_run);
    let note =
        |path: &Path| overlay.iter().try_for_each(|overlay| cache(context).note_overlay(path, overlay));
    if !word.contains("://") {
        if !sums.is_empty() {
            return Err(refused("checksum= is for the image of a URL"));
        }
        note(Path::new(&word))?;
        return Ok(None);
    }
    if words.iter().any(|word| word == "rw" || word == "ro=off" || word == "readonly=off") {
        return Err(refused(
            "an image that was fetched is not written: overlay=PATH keeps what the guest writes",
        ));
    }
    let checksum = match &sums[..] {
        [] => None,
        [sum] => Some(sum["checksum=".len()..].parse::<Digest>().of_flag("--image: checksum")?),
        _ => return Err(refused("checksum is said twice")),
    };
    let format = words.iter().find_map(|word| word.strip_prefix("format="));
    let format = format.map(disk_format).transpose()?;
    let source = source(&word, context).of_flag("--image")?;
    let cache = cache(context);
    let there = cache.find(&source, None, checksum.as_ref())?;
    let there = there.filter(|there| format.is_none_or(|format| format == there.format));
    let path = match there {
        Some(there) => there.path,
        None if args.machine.dry_run => {
            let message =
                format!("--image {}: it is not fetched yet, and a dry run fetches nothing", source.shown());
            return Err(Hint::error(message, "nelly image pull URL fetches it"));
        }
        None => {
            let credentials = credentials(None)?;
            let wanted =
                Wanted { credentials: credentials.as_ref(), checksum: checksum.as_ref(), ..wanted(&source) };
            let mut fetching = Fetching::new(context, false);
            fetching.bar.begins(&source);
            let fetcher = Fetcher { client: &fetching.client, unpacker: &fetching.unpacker };
            let pulled = cache.pull(&fetcher, &wanted, format, &mut fetching.bar);
            pulled.map_err(|error| failed(error, &source))?.path
        }
    };
    note(&path)?;
    let path = path.into_os_string().into_string().map_err(|path| {
        anyhow::anyhow!("the path of the image, {}, is no text in UTF-8", Path::new(&path).display())
    })?;
    words.insert(0, path);
    let words: Vec<String> = words.into_iter().map(|word| word.replace(',', ",,")).collect();
    Ok(Some(BootArgs { image: Some(words.join(",")), ..args.clone() }))
}

/// Remembers that the overlay of a `--disk` needs the fetched image that it lies above, if it does.
fn note_overlay(text: &str, cache: &DiskCache) -> Result<()> {
    let words = boot_disk::split(text);
    let overlay = words.iter().find_map(|word| word.strip_prefix("overlay="));
    if let (Some(path), Some(overlay)) = (words.first(), overlay) {
        cache.note_overlay(Path::new(path), Path::new(overlay))?;
    }
    Ok(())
}

/// Where fetched images are.
pub(crate) fn cache(context: &Context) -> DiskCache {
    DiskCache::at(context.places.data.join("disks"))
}

/// What a word names.
///
/// # Errors
/// It is no URL that is fetched from.
pub(crate) fn source(word: &str, context: &Context) -> Result<Source, RegistryError> {
    Source::parse(word, &registry::options(context))
}

fn disk_format(word: &str) -> Result<DiskFormat> {
    match word {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        _ => Err(Usage::error(format!("the format {word:?} is neither raw nor qcow2"))),
    }
}

/// What a server is shown: of a file, else of the environment.
fn credentials(file: Option<&Path>) -> Result<Option<FileCredentials>> {
    let (text, place) = match file {
        Some(path) => (read(path)?, format!("--credentials {}", path.display())),
        None => match std::env::var(CREDENTIALS) {
            Ok(text) if !text.is_empty() => (text, format!("${CREDENTIALS}")),
            _ => return Ok(None),
        },
    };
    // Its text is not repeated.
    let why = || format!("{place} is none of `bearer TOKEN`, `basic USER:PASSWORD` and `header NAME: VALUE`");
    FileCredentials::parse(&text).map(Some).ok_or_else(|| Usage::error(why()))
}

fn read(path: &Path) -> Result<String> {
    let failed = || format!("cannot read --credentials {}", path.display());
    let file = std::fs::File::open(path).with_context(failed)?;
    let mut text = String::new();
    file.take(CREDENTIALS_MAX).read_to_string(&mut text).with_context(failed)?;
    Ok(text)
}

/// An error with what to do about it.
pub(crate) fn failed(error: FetchError, source: &Source) -> anyhow::Error {
    let hint = match &error {
        FetchError::Server(RegistryError::FileDenied { .. }) => {
            format!("--credentials FILE or ${CREDENTIALS} has what it is shown, such as `bearer TOKEN`")
        }
        FetchError::Server(RegistryError::TooLarge { .. }) => {
            "nelly image pull --max-size SIZE allows more".to_owned()
        }
        FetchError::Server(RegistryError::Cut { .. }) => {
            "the same command goes on where this one ended".to_owned()
        }
        _ => return anyhow::Error::new(error).context(format!("cannot fetch {}", source.shown())),
    };
    let whole = nelly_vmm::text::chain(&error);
    Hint::error(format!("cannot fetch {}: {whole}", source.shown()), hint)
}

/// The path of a file that a fetch makes, with its directories.
///
/// # Errors
/// They cannot be made.
pub(crate) fn room_for(target: &Path) -> Result<PathBuf> {
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = directory {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    Ok(target.to_owned())
}

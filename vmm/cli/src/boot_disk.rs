//! The disks of `nelly boot`: `--disk FILE[,OPTION...]`, and `--image` with the same options.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, anyhow};
use nelly_disk::{ChainFile, Follow, Format};
use nelly_sandbox::spec::quantity;
use nelly_sandbox::state::BaseFile;
use nelly_vmm::config::{
    BackingFile, DiskConfig, DiskFormat, DiskId, DiskLimits, DiskThreads, FileSource, SectorSize,
};
use nelly_vmm::sys::files::Accept;

use crate::boot_paths;
use crate::fail::{Hint, Usage};
use crate::machine::open;

/// A disk that a flag describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskFlag {
    /// [`DISK`] or [`IMAGE`].
    flag: &'static str,
    path: PathBuf,
    /// What the flag says; else the ending of the name does.
    format: Option<DiskFormat>,
    /// What the flag says; else see [`DiskFlag::written`].
    written: Option<Written>,
    size: Option<u64>,
    backing_anywhere: bool,
    threads: Option<DiskThreads>,
    sectors: SectorSize,
    limits: DiskLimits,
}

/// Threads of a disk whose flag says nothing of them, and of how many disks each has so many: a
/// machine with more has enough of them with one each.
const THREADS: u8 = 4;
const DISKS_WITH_THREADS: usize = 8;

/// Where what the guest writes goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Written {
    Nowhere,
    InPlace,
    Overlay(PathBuf),
    Ephemeral,
}

/// The flag of a disk, and that of the disk which a machine boots from.
const DISK: &str = "--disk";
const IMAGE: &str = "--image";

impl FromStr for DiskFlag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(DISK, text)
    }
}

/// The value of `flag` with absolute paths, as it stands in the record of a machine that is started
/// from anywhere.
///
/// # Errors
/// It cannot be a value, or a path cannot be resolved, is of this process only, or is no text in
/// UTF-8.
pub(crate) fn absolute(flag: &'static str, text: &str) -> Result<String> {
    DiskFlag::parse(flag, text)?;
    let path = |path: &str| {
        let absolute = boot_paths::lasting(flag, Path::new(path))?.into_os_string().into_string();
        absolute.map_err(|_| anyhow!("{flag} {text}: the path of the current directory is no text in UTF-8"))
    };
    let words = split(text).into_iter().enumerate().map(|(index, word)| {
        let word = match (index, word.strip_prefix("overlay=")) {
            (0, _) => path(&word)?,
            (_, Some(overlay)) => format!("overlay={}", path(overlay)?),
            _ => word,
        };
        Ok(word.replace(',', ",,"))
    });
    Ok(words.collect::<Result<Vec<_>>>()?.join(","))
}

/// The words between single commas.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        let last = words.len() - 1;
        match letter {
            ',' if rest.peek() == Some(&',') => {
                rest.next();
                words[last].push(',');
            }
            ',' => words.push(String::new()),
            other => words[last].push(other),
        }
    }
    words
}

impl DiskFlag {
    /// The value of `--image`.
    ///
    /// # Errors
    /// What the value cannot be: an error of how the command was used.
    pub(crate) fn image(text: &str) -> Result<Self> {
        Self::parse(IMAGE, text)
    }

    fn parse(flag: &'static str, text: &str) -> Result<Self> {
        let refused = |reason: String| Usage::error(format!("{flag} {text}: {reason}"));
        let mut words = split(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| refused("no file is named".to_owned()))?;
        let mut disk = Self::new(flag, path.into());
        let mut said = Vec::new();
        for word in words {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.as_str(), None),
            };
            let kind = disk.take(name, value).map_err(refused)?;
            if said.contains(&kind) {
                return Err(refused(format!("{kind} is said twice")));
            }
            said.push(kind);
        }
        if disk.written == Some(Written::Nowhere) && disk.size.is_some() {
            return Err(refused("a disk that is only read cannot be made larger".to_owned()));
        }
        Ok(disk)
    }

    /// A disk of which nothing more is said.
    fn new(flag: &'static str, path: PathBuf) -> Self {
        Self {
            flag,
            path,
            format: None,
            written: None,
            size: None,
            backing_anywhere: false,
            threads: None,
            sectors: SectorSize::default(),
            limits: DiskLimits::default(),
        }
    }

    /// Takes an option; returns what kind of thing it says.
    fn take(&mut self, name: &str, value: Option<&str>) -> Result<&'static str, String> {
        let needed =
            || value.filter(|value| !value.is_empty()).ok_or_else(|| format!("{name} needs a value"));
        let written = match name {
            "format" => {
                let format = needed()?.parse::<Format>().map_err(|reason| format!("format: {reason}"))?;
                self.format = Some(format.into());
                return Ok("the format");
            }
            "size" => {
                self.size = Some(quantity::bytes(needed()?).map_err(|error| format!("size: {error}"))?);
                return Ok("the size");
            }
            "threads" => {
                let count = needed()?.parse().map_err(|_| "threads needs a number".to_owned())?;
                self.threads = Some(DiskThreads::new(count)?);
                return Ok("the number of threads");
            }
            "sectors" => {
                let bytes = needed()?.parse().map_err(|_| "sectors needs a number of bytes".to_owned())?;
                self.sectors = SectorSize::new(bytes)?;
                return Ok("the size of sectors");
            }
            "bps" => {
                let bytes = quantity::bytes(needed()?).map_err(|error| format!("bps: {error}"))?;
                let some = NonZeroU64::new(bytes).ok_or("bps: a disk that moves no bytes is none")?;
                self.limits.bytes_per_second = Some(some);
                return Ok("bps");
            }
            "iops" => {
                let some = needed()?.parse().map_err(|_| "iops needs a number, at least 1".to_owned())?;
                self.limits.operations_per_second = Some(some);
                return Ok("iops");
            }
            "overlay" => Written::Overlay(needed()?.into()),
            _ if value.is_some() && !matches!(name, "ro" | "readonly") => {
                return Err(format!("the option {name:?} is unknown; {OPTIONS}"));
            }
            "backing-anywhere" => {
                self.backing_anywhere = true;
                return Ok("backing-anywhere");
            }
            "ephemeral" => Written::Ephemeral,
            "rw" => Written::InPlace,
            "ro" | "readonly" => match value {
                None | Some("on") => Written::Nowhere,
                Some("off") => Written::InPlace,
                Some(other) => return Err(format!("{name} is on or off, and not {other:?}")),
            },
            _ => return Err(format!("the option {name:?} is unknown; {OPTIONS}")),
        };
        self.written = Some(written);
        Ok("whether it is written")
    }

    /// The same, with what the guest writes in the overlay `path` if nobody said where it goes.
    pub(crate) fn kept_in(mut self, path: &Path) -> Self {
        self.written.get_or_insert_with(|| Written::Overlay(path.to_owned()));
        self
    }

    /// The file that keeps what the guest writes.
    pub(crate) fn kept(&self) -> Option<&Path> {
        match self.written() {
            Written::InPlace => Some(&self.path),
            Written::Overlay(overlay) => Some(overlay),
            Written::Nowhere | Written::Ephemeral => None,
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the machine boots from this disk and nobody said where what it writes goes.
    pub(crate) fn is_ephemeral_unasked(&self) -> bool {
        self.written.is_none() && self.written() == &Written::Ephemeral
    }

    /// Where what the guest writes goes. An image that machines are made of is not written unless
    /// somebody says so.
    fn written(&self) -> &Written {
        let unsaid = if self.flag == IMAGE { &Written::Ephemeral } else { &Written::InPlace };
        self.written.as_ref().unwrap_or(unsaid)
    }

    fn format(&self) -> DiskFormat {
        self.format.unwrap_or_else(|| match self.path.extension().and_then(|ending| ending.to_str()) {
            Some("qcow2") => DiskFormat::Qcow2,
            _ => DiskFormat::Raw,
        })
    }

    /// The disk of this number. What is to be open when the monitor starts is added to `files`;
    /// with `dry_run` nothing is made, and nothing changes.
    pub(crate) fn config(&self, index: usize, dry_run: bool, files: &mut Vec<OwnedFd>) -> Result<DiskConfig> {
        self.check()?;
        let id = DiskId::new(format!("disk{index}")).map_err(|reason| anyhow!("{}: {reason}", self.flag))?;
        let source = FileSource::Path(self.path.clone());
        let mut disk = DiskConfig::new(id, source, self.written() == &Written::Nowhere);
        (disk.format, disk.backing_anywhere) = (self.format(), self.backing_anywhere);
        (disk.sector_bytes, disk.limits) = (self.sectors, self.limits);
        disk.threads = self.threads.unwrap_or_else(|| {
            let threads = if index < DISKS_WITH_THREADS { THREADS } else { 1 };
            DiskThreads::new(threads).expect("it is within the limits")
        });
        if dry_run {
            // The overlay's own image, as far as it has a name; what lies below it is found by it.
            match self.written() {
                Written::Overlay(path) => disk.source = FileSource::Path(path.clone()),
                Written::Ephemeral => disk.source = FileSource::Fd(0),
                Written::Nowhere | Written::InPlace => return Ok(disk),
            }
            disk.format = DiskFormat::Qcow2;
            return Ok(disk);
        }
        let chain = self.chain().with_context(|| format!("{} {}", self.flag, self.path.display()))?;
        let mut sources =
            chain.into_iter().map(|file| inherit(file, files)).collect::<Result<Vec<_>>>()?.into_iter();
        if let Some((source, format)) = sources.next() {
            (disk.source, disk.format) = (source, format);
        }
        disk.backing = sources.map(|(source, format)| BackingFile { source, format }).collect();
        Ok(disk)
    }

    /// The files of the disk as its guest will find it, to be read. Nothing is made and nothing
    /// changes: an overlay that does not exist yet has what the image has.
    ///
    /// # Errors
    /// The image cannot be used, or somebody writes to it.
    pub(crate) fn look(&self) -> Result<Vec<ChainFile>> {
        self.check()?;
        let (path, format, follow) = (&self.path, self.format().into(), self.follow());
        let chain = match self.written() {
            Written::Overlay(overlay) if std::fs::symlink_metadata(overlay).is_ok() => {
                nelly_disk::open_overlay_to_read(overlay, path, format, follow)
            }
            _ => nelly_disk::open_chain(path, format, true, follow),
        };
        chain.with_context(|| format!("{} {}", self.flag, path.display()))
    }

    /// The regular files below an overlay of this disk as they are now: the image, then its backing
    /// files.
    ///
    /// # Errors
    /// One of them cannot be used, or somebody writes to it.
    pub(crate) fn base(&self) -> Result<Vec<BaseFile>> {
        self.check()?;
        let failed = || format!("{} {}", self.flag, self.path.display());
        let chain = nelly_disk::open_chain(&self.path, self.format().into(), true, self.follow());
        let mut base = Vec::new();
        for file in chain.with_context(failed)? {
            let meta = file.file.metadata().with_context(failed)?;
            base.extend(BaseFile::of(Path::new(&file.name), &meta));
        }
        Ok(base)
    }

    /// Whether a machine could open this disk again that has it open now, with its locks.
    ///
    /// # Errors
    /// A file of it cannot be used.
    pub(crate) fn check_in_use(&self) -> Result<()> {
        match self.written() {
            // The machine is its only writer.
            Written::InPlace => self.check(),
            Written::Nowhere | Written::Ephemeral => self.base().map(drop),
            Written::Overlay(path) => {
                self.base()?;
                open(self.flag, path, Accept::Disk).map(drop)
            }
        }
    }

    fn follow(&self) -> Follow {
        if self.backing_anywhere { Follow::Anywhere } else { Follow::Beside }
    }

    /// Whether the file can be a disk at all.
    fn check(&self) -> Result<()> {
        let mut first = open(self.flag, &self.path, Accept::Disk)?;
        self.looks_raw(&mut first)
    }

    /// Opens the image and what lies below it.
    fn chain(&self) -> Result<Vec<ChainFile>> {
        let follow = self.follow();
        let (path, format) = (&self.path, self.format().into());
        let chain = match self.written() {
            Written::Nowhere => nelly_disk::open_chain(path, format, true, follow)?,
            Written::InPlace => nelly_disk::open_chain(path, format, false, follow)?,
            Written::Overlay(overlay) => nelly_disk::open_overlay(overlay, path, format, follow)?,
            Written::Ephemeral => nelly_disk::ephemeral_overlay(&scratch(), path, format, follow)?,
        };
        if let Some(size) = self.size {
            nelly_disk::grow_chain(&chain, size)?;
        }
        Ok(chain)
    }

    /// A file that is taken for raw because nobody said otherwise does not begin as a qcow2 image:
    /// its guest would find no file system, and nobody would see why.
    fn looks_raw(&self, file: &mut File) -> Result<()> {
        let mut first = [0; 4];
        let raw = self.format.is_none() && self.format() == DiskFormat::Raw;
        if raw && file.read_exact(&mut first).is_ok() && first == *b"QFI\xfb" {
            let message = format!(
                "{}: {} begins as a qcow2 image does, and its name does not end so",
                self.flag,
                self.path.display()
            );
            return Err(Hint::error(
                message,
                "add ,format=qcow2, or ,format=raw if the guest shall see the file as it is",
            ));
        }
        Ok(())
    }
}

const OPTIONS: &str = "there are format=raw|qcow2, ro, rw, overlay=PATH, ephemeral, size=SIZE, bps=SIZE, iops=N, \
    threads=N, sectors=512|4096 and backing-anywhere";

/// Where files without a name are made: not in memory, where /tmp may lie.
fn scratch() -> PathBuf {
    std::env::var_os("TMPDIR")
        .filter(|path| !path.is_empty())
        .map_or_else(|| Path::new("/var/tmp").into(), PathBuf::from)
}

/// Lets the monitor, which this process becomes, inherit a file.
fn inherit(file: ChainFile, files: &mut Vec<OwnedFd>) -> Result<(FileSource, DiskFormat)> {
    let format = file.format.into();
    let file = OwnedFd::from(file.file);
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).context("cannot pass a descriptor on")?;
    let number = file.as_raw_fd().cast_unsigned();
    files.push(file);
    Ok((FileSource::Fd(number), format))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskFlag, String> {
        text.parse::<DiskFlag>().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_flag_says_file_format_and_where_it_is_written() {
        let plain = DiskFlag::new(DISK, "a.img".into());
        let table = [
            ("a.img", plain.clone()),
            ("a.img,rw", DiskFlag { written: Some(Written::InPlace), ..plain.clone() }),
            ("a.img,ro", DiskFlag { written: Some(Written::Nowhere), ..plain.clone() }),
            ("a.img,readonly=on", DiskFlag { written: Some(Written::Nowhere), ..plain.clone() }),
            ("a.img,readonly=off", DiskFlag { written: Some(Written::InPlace), ..plain.clone() }),
            ("a,,b,ro", DiskFlag { path: "a,b".into(), written: Some(Written::Nowhere), ..plain.clone() }),
            ("a.img,format=qcow2", DiskFlag { format: Some(DiskFormat::Qcow2), ..plain.clone() }),
            (
                "a.img,ephemeral,size=20G,format=raw,backing-anywhere",
                DiskFlag {
                    format: Some(DiskFormat::Raw),
                    written: Some(Written::Ephemeral),
                    size: Some(20 << 30),
                    backing_anywhere: true,
                    ..plain.clone()
                },
            ),
            (
                "a.img,threads=16,sectors=4096,bps=50M,iops=300",
                DiskFlag {
                    threads: Some(DiskThreads::new(16).unwrap()),
                    sectors: SectorSize::new(4096).unwrap(),
                    limits: DiskLimits {
                        bytes_per_second: NonZeroU64::new(50 << 20),
                        operations_per_second: NonZeroU64::new(300),
                    },
                    ..plain.clone()
                },
            ),
            (
                "a.img,overlay=b,,c",
                DiskFlag { written: Some(Written::Overlay("b,c".into())), ..plain.clone() },
            ),
        ];
        for (text, flag) in table {
            assert_eq!(parse(text).unwrap(), flag, "{text}");
        }
        assert_eq!(parse("x/a.qcow2").unwrap().format(), DiskFormat::Qcow2);
        assert_eq!(parse("x/a.qcow2,format=raw").unwrap().format(), DiskFormat::Raw);
        assert_eq!(plain.format(), DiskFormat::Raw);
    }

    #[test]
    fn an_image_is_written_only_where_somebody_says_so() {
        let image = |text: &str| DiskFlag::image(text).unwrap();
        for (disk, written, unasked) in [
            (parse("a.img").unwrap(), Written::InPlace, false),
            (image("a.img"), Written::Ephemeral, true),
            (image("a.img,size=2G"), Written::Ephemeral, true),
            (image("a.img,ephemeral"), Written::Ephemeral, false),
            (image("a.img,rw"), Written::InPlace, false),
            (image("a.img,overlay=b"), Written::Overlay("b".into()), false),
        ] {
            assert_eq!((disk.written(), disk.is_ephemeral_unasked()), (&written, unasked), "{disk:?}");
        }
        let error = format!("{:#}", DiskFlag::image("a.img,color=red").unwrap_err());
        assert!(error.starts_with("--image a.img,color=red: ") && error.contains("unknown"), "{error}");
    }

    #[test]
    fn a_record_has_absolute_paths_and_the_same_options() {
        let here = std::env::current_dir().unwrap();
        let here = here.to_str().unwrap();
        let text = absolute(IMAGE, "a,,b.img,size=2G,overlay=x/c,,d,format=raw").unwrap();
        assert_eq!(text, format!("{here}/a,,b.img,size=2G,overlay={here}/x/c,,d,format=raw"));
        assert_eq!(absolute(IMAGE, &text).unwrap(), text);
        assert!(absolute(DISK, "a,color=red").is_err());
        let own = Path::new("/own");
        for (text, kept) in [
            ("a", Some(own)),
            ("a,size=1G", Some(own)),
            ("a,rw", Some(Path::new("a"))),
            ("a,ephemeral", None),
        ] {
            assert_eq!(DiskFlag::image(text).unwrap().kept_in(own).kept(), kept, "{text}");
        }
    }

    #[test]
    fn what_a_flag_cannot_say_is_named() {
        for (text, what) in [
            ("", "no file"),
            (",ro", "no file"),
            ("a,cache=none", "\"cache\" is unknown"),
            ("a,ro=1", "on or off"),
            ("a,rw=on", "unknown"),
            ("a,format=vmdk", "not raw or qcow2"),
            ("a,format", "needs a value"),
            ("a,overlay=", "needs a value"),
            ("a,size=5", "no unit"),
            ("a,ro,size=5G", "only read"),
            ("a,threads=0", "1 to 16"),
            ("a,threads=many", "a number"),
            ("a,sectors=1024", "512 or 4096"),
            ("a,iops=0", "at least 1"),
            ("a,bps=0M", "more than zero"),
            ("a,bps=100", "no unit"),
            ("a,ro,ephemeral", "whether it is written is said twice"),
            ("a,size=1G,size=2G", "the size is said twice"),
            ("a,", "\"\" is unknown"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what) && error.contains("--disk"), "{text}: {error}");
        }
    }

    #[test]
    fn an_image_that_nobody_calls_qcow2_is_not_given_to_a_guest_as_raw() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, b"QFI\xfb and so on").unwrap();
        let config = |options: &str| {
            let flag = parse(&format!("{}{options}", path.display())).unwrap();
            flag.config(0, true, &mut Vec::new())
        };
        let error = format!("{:#}", config("").unwrap_err());
        assert!(error.contains("disk.img") && error.contains("qcow2"), "{error}");
        assert_eq!(config(",format=raw").unwrap().format, DiskFormat::Raw);
    }
}

//! The files of a machine. Whoever starts it opens them, once, before anything of it runs: the
//! monitor is given descriptors, keeps them, and reads them again from their beginning when the
//! guest starts again. A path means nothing to it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nelly_disk::{ChainFile, Follow, Format, ImageError};
use serde::{Deserialize, Serialize};

use crate::config::{
    BackingFile, DiskConfig, DiskFormat, FileSource, FileUse, MachineConfig, NetworkLink, TapLink,
};
use crate::sys::files::Accept;
use crate::sys::{self, fits};

/// What goes along with a descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    /// What messages call the file; its number, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Where a log lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<LogPlace>,
}

impl Label {
    /// With what messages call the file.
    pub(super) fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), place: None }
    }
}

/// A name in a directory, of which there is a descriptor too: a log that is full begins anew there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LogPlace {
    /// Which of the machine's files the directory is.
    directory: u32,
    name: OsString,
}

/// A file that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("{field}: cannot open {file}")]
    Open {
        field: String,
        file: String,
        #[source]
        error: io::Error,
    },
    #[error("{field}: the disk cannot be used")]
    Chain {
        field: String,
        #[source]
        error: ImageError,
    },
    #[error("{field}: {file} was not handed in")]
    Missing { field: String, file: String },
}

/// Descriptors, and what is said of them.
#[derive(Debug, Default)]
pub(super) struct Handed {
    pub(super) files: Vec<OwnedFd>,
    pub(super) labels: Vec<Label>,
}

impl Handed {
    /// What the config names by number counts through `files` already.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn with(files: Vec<OwnedFd>) -> Self {
        let labels = files.iter().map(|_| Label::default()).collect();
        Self { files, labels }
    }

    /// Opens what the config names by path, and taps by name; from then on it names everything by
    /// its number here.
    pub(super) fn open(&mut self, config: &mut MachineConfig) -> Result<(), FileError> {
        self.open_taps(config)?;
        self.open_chains(config)?;
        config.files().into_iter().try_for_each(|(field, usage, source)| self.open_one(&field, usage, source))
    }

    /// The same of one disk.
    pub(super) fn open_disk(&mut self, disk: &mut DiskConfig) -> Result<(), FileError> {
        self.open_chain("disk", disk)?;
        disk.files("disk")
            .into_iter()
            .try_for_each(|(field, usage, source)| self.open_one(&field, usage, source))
    }

    /// What this process was started with, by number, and what the config names by path.
    pub(super) fn inherited(config: &mut MachineConfig) -> Result<Self, FileError> {
        let mut handed = Self::default();
        for (field, usage, source) in config.files() {
            let FileSource::Fd(number) = *source else {
                handed.open_one(&field, usage, source)?;
                continue;
            };
            let file = source.to_string();
            let failed = |error| FileError::Open { field, file: file.clone(), error };
            let taken = sys::inherited(number).map_err(failed)?;
            *source = handed.push(taken, Label { name: Some(file), place: None });
        }
        handed.open_taps(config)?;
        handed.open_chains(config)?;
        Ok(handed)
    }

    /// Opens the images whose backing files are to be found, with these. Comes after what the
    /// config names by number was taken.
    fn open_chains(&mut self, config: &mut MachineConfig) -> Result<(), FileError> {
        let mut disks = config.disks.iter_mut().enumerate();
        disks.try_for_each(|(index, disk)| self.open_chain(&format!("disks[{index}]"), disk))
    }

    fn open_chain(&mut self, field: &str, disk: &mut DiskConfig) -> Result<(), FileError> {
        let (true, FileSource::Path(path)) = (disk.is_unresolved(), &disk.source) else { return Ok(()) };
        let follow = if disk.backing_anywhere { Follow::Anywhere } else { Follow::Beside };
        let chain = nelly_disk::open_chain(path, disk.format.into(), disk.read_only, follow);
        let chain = chain.map_err(|error| FileError::Chain { field: field.to_owned(), error })?;
        let mut files = chain.into_iter().map(|ChainFile { file, format, name }| {
            let source = self.push(file.into(), Label { name: Some(name), place: None });
            BackingFile { source, format: format.into() }
        });
        if let Some(image) = files.next() {
            disk.source = image.source;
        }
        disk.backing = files.collect();
        Ok(())
    }

    /// Opens the taps that have a name and no descriptors. Comes after what the config names by
    /// number was taken.
    fn open_taps(&mut self, config: &mut MachineConfig) -> Result<(), FileError> {
        for (index, network) in config.networks.iter_mut().enumerate() {
            let NetworkLink::Tap(TapLink { name: Some(name), queues, vhost, no_vhost }) = &mut network.link
            else {
                continue;
            };
            if !queues.is_empty() {
                continue;
            }
            let (pairs, file) = (network.queues.get(), format!("the tap {}", name.as_str()));
            // Not made here, where root could: a name with a mistake would lead nowhere.
            if !sys::tap::exists(name.as_str()) {
                let name = name.as_str();
                let text =
                    format!("there is no such interface; `ip tuntap add {name} mode tap user USER` makes it");
                let error = io::Error::new(io::ErrorKind::NotFound, text);
                return Err(FileError::Open {
                    field: format!("networks[{index}].link.tap.name"),
                    file,
                    error,
                });
            }
            for _ in 0..pairs {
                let opened = sys::tap::open(name.as_str(), pairs > 1).map_err(|error| FileError::Open {
                    field: format!("networks[{index}].link.tap.name"),
                    file: file.clone(),
                    error,
                })?;
                queues.push(self.push(opened, Label { name: Some(file.clone()), place: None }));
            }
            if *no_vhost {
                continue;
            }
            // All or none; without them, the monitor serves the queues, and its inspection says so.
            let opened: io::Result<Vec<_>> = (0..pairs).map(|_| sys::vhost::open()).collect();
            for opened in opened.into_iter().flatten() {
                vhost.push(self.push(opened, Label { name: Some("/dev/vhost-net".to_owned()), place: None }));
            }
        }
        Ok(())
    }

    fn open_one(&mut self, field: &str, usage: FileUse, source: &mut FileSource) -> Result<(), FileError> {
        let FileSource::Path(path) = source else { return Ok(()) };
        let file = path.display().to_string();
        let failed = |error| FileError::Open { field: field.to_owned(), file: file.clone(), error };
        let mut options = OpenOptions::new();
        let (options, accept) = match usage {
            FileUse::Socket => {
                let socket = sys::unix::connect(path).map_err(failed)?;
                *source = self.push(socket.into(), Label { name: Some(file), place: None });
                return Ok(());
            }
            FileUse::Share { read_only } => {
                let shared = sys::files::open_shared(path, read_only).map_err(failed)?;
                *source = self.push(shared, Label { name: Some(file), place: None });
                return Ok(());
            }
            FileUse::Tap => (options.read(true).write(true), Accept::Stream),
            // Opened by `open_chains`.
            FileUse::Chain => return Ok(()),
            FileUse::Image => (options.read(true), Accept::Regular),
            FileUse::Disk { read_only } => (options.read(true).write(!read_only), Accept::Disk),
            FileUse::Log => (options.append(true).create(true), Accept::Stream),
            FileUse::Input => (options.read(true), Accept::Stream),
            FileUse::Output => (options.write(true), Accept::Stream),
        };
        let opened = sys::files::open(path, options, accept).map_err(failed)?;
        // Only what has a size begins anew.
        let place = match usage {
            FileUse::Log if opened.metadata().map_err(failed)?.is_file() => self.place(path),
            _ => None,
        };
        *source = self.push(opened.into(), Label { name: Some(file), place });
        Ok(())
    }

    /// Where a log lies. One whose directory cannot be opened begins anew by forgetting what is in
    /// it.
    fn place(&mut self, path: &Path) -> Option<LogPlace> {
        let (directory, name) = (path.parent()?, path.file_name()?.to_owned());
        let directory = sys::files::open_directory(directory).ok()?;
        let label = Label { name: Some(path.display().to_string()), place: None };
        let FileSource::Fd(directory) = self.push(directory, label) else { return None };
        Some(LogPlace { directory, name })
    }

    /// Adds a file, and says how the config names it.
    pub(super) fn push(&mut self, file: OwnedFd, label: Label) -> FileSource {
        let number = fits(self.files.len(), "nobody has 2^32 descriptors");
        self.files.push(file);
        self.labels.push(label);
        FileSource::Fd(number)
    }
}

impl From<DiskFormat> for Format {
    fn from(format: DiskFormat) -> Self {
        match format {
            DiskFormat::Raw => Self::Raw,
            DiskFormat::Qcow2 => Self::Qcow2,
        }
    }
}

impl From<Format> for DiskFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}

/// A machine's files in the monitor, by number.
#[derive(Debug)]
pub(super) struct Files(BTreeMap<u32, (OwnedFd, Label)>);

impl From<Handed> for Files {
    fn from(Handed { files, mut labels }: Handed) -> Self {
        // Whoever says nothing of a file has no name for it.
        labels.resize(files.len(), Label::default());
        Self((0..).zip(files.into_iter().zip(labels)).collect())
    }
}

impl Files {
    /// The file for the config's `field`: a duplicate, so that a machine can start again with it.
    pub(super) fn get(&self, field: &str, source: &FileSource) -> Result<File, FileError> {
        let failed = |error| FileError::Open { field: field.to_owned(), file: self.name(source), error };
        match self.entry(source) {
            Some((file, _)) => Ok(file.try_clone().map_err(failed)?.into()),
            None => Err(FileError::Missing { field: field.to_owned(), file: self.name(source) }),
        }
    }

    /// Takes over the files of another set, which `disk` names, and changes the numbers in `disk`
    /// to those that the files have here.
    pub(super) fn adopt(&mut self, other: Self, disk: &mut DiskConfig) {
        let first = self.0.last_key_value().map_or(0, |(last, _)| last + 1);
        self.0.extend(other.0.into_iter().map(|(number, file)| (first + number, file)));
        for (_, _, source) in disk.files("disk") {
            if let FileSource::Fd(number) = source {
                *number += first;
            }
        }
    }

    /// Closes a file, which nobody will ask for any more.
    pub(super) fn forget(&mut self, source: &FileSource) {
        if let FileSource::Fd(number) = source {
            self.0.remove(number);
        }
    }

    /// The directory of a log, and its name there.
    pub(super) fn log_place(&self, source: &FileSource) -> Option<(OwnedFd, OsString)> {
        let LogPlace { directory, name } = self.entry(source)?.1.place.as_ref()?;
        let (directory, _) = self.entry(&FileSource::Fd(*directory))?;
        Some((directory.try_clone().ok()?, name.clone()))
    }

    /// What messages call it.
    pub(super) fn name(&self, source: &FileSource) -> String {
        let named = self.entry(source).and_then(|(_, label)| label.name.clone());
        named.unwrap_or_else(|| source.to_string())
    }

    fn entry(&self, source: &FileSource) -> Option<&(OwnedFd, Label)> {
        match source {
            FileSource::Fd(number) => self.0.get(number),
            FileSource::Path(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::config::Endpoint;

    #[test]
    fn what_is_named_by_path_is_opened_once_and_named_by_number_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| FileSource::Path(folder.path().join(name));
        std::fs::write(folder.path().join("kernel"), "first").unwrap();
        let given = tempfile::tempfile().unwrap();
        (&given).write_all(b"given").unwrap();
        let mut config = MachineConfig::new(path("kernel"));
        (config.initrd, config.serial) = (Some(FileSource::Fd(0)), Endpoint::Log(path("log")));
        let mut handed = Handed::with(vec![given.into()]);
        handed.open(&mut config).unwrap();
        assert!(
            config.files().iter().all(|(_, _, source)| matches!(source, FileSource::Fd(_))),
            "{config:?}"
        );

        // What has the name later is another file.
        std::fs::rename(folder.path().join("kernel"), folder.path().join("old")).unwrap();
        std::fs::write(folder.path().join("kernel"), "second").unwrap();
        let files = Files::from(handed);
        let mut text = String::new();
        files.get("kernel", &config.kernel).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "first");
        assert!(files.name(&config.kernel).ends_with("/kernel"));
        let initrd = config.initrd.clone().unwrap();
        assert_eq!((initrd.clone(), files.name(&initrd)), (FileSource::Fd(0), "descriptor 0".to_owned()));
        let Endpoint::Log(log) = &config.serial else { panic!("{config:?}") };
        assert_eq!(files.log_place(log).unwrap().1, "log");
        assert!(files.log_place(&config.kernel).is_none());
        let error = files.get("disk", &FileSource::Fd(9)).unwrap_err().to_string();
        assert_eq!(error, "disk: descriptor 9 was not handed in");
        let error = files.get("disk", &path("kernel")).unwrap_err().to_string();
        assert!(error.ends_with("/kernel was not handed in"), "a path means nothing: {error}");
    }

    #[test]
    fn what_cannot_be_opened_names_field_and_file() {
        let mut config = MachineConfig::new(FileSource::Path("/no/such/kernel".into()));
        let error = Handed::default().open(&mut config).unwrap_err();
        assert_eq!(error.to_string(), "kernel: cannot open /no/such/kernel");
        config.kernel = FileSource::Fd(900_000);
        let error = Handed::inherited(&mut config).unwrap_err();
        assert_eq!(error.to_string(), "kernel: cannot open descriptor 900000");
    }
}

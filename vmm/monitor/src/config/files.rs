//! The files of a machine: which descriptors it names, what it does with each, and its paths made
//! independent of a directory.

use std::path::{Path, PathBuf};

use super::{ConfigError, Endpoint, FileSource, MachineConfig};

/// What a machine does with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileUse {
    /// Read before the guest runs.
    Image,
    /// Read, and perhaps written, at any place.
    Disk {
        /// It is not written.
        read_only: bool,
    },
    /// An image whose backing files are to be found: opened with them, as one.
    Chain,
    /// Appended to, and made if it is not there.
    Log,
    /// Read to its end.
    Input,
    /// Written.
    Output,
    /// A connected socket of a network; a path is that of a stream socket to connect to.
    Socket,
    /// A queue of a tap; a path is that of its device node.
    Tap,
    /// A directory, or a regular file, of which the guest sees what is in it.
    Share {
        /// Nothing in it is written.
        read_only: bool,
    },
}

impl MachineConfig {
    /// The numbers of the descriptors that it names, also by a path like `/dev/fd/5`.
    #[must_use]
    pub fn descriptors(&self) -> Vec<u32> {
        // Only looked at; that every file is found is written once.
        let mut copy = self.clone();
        let numbers = copy.files().into_iter().filter_map(|(_, _, file)| match file {
            FileSource::Fd(number) => Some(*number),
            FileSource::Path(path) => descriptor(path),
        });
        numbers.collect()
    }

    /// The same machine with absolute paths: whoever opens its files may be elsewhere.
    ///
    /// # Errors
    /// A path is empty, or relative to a current directory that has no name any more.
    pub fn with_absolute_paths(mut self) -> Result<Self, ConfigError> {
        for (field, _, file) in self.files() {
            if let FileSource::Path(path) = file {
                *path = absolute(&field, path)?;
            }
        }
        if let Some(path) = self.vsock.as_mut().and_then(|vsock| vsock.unix_socket.as_mut()) {
            *path = absolute("vsock", path)?;
        }
        Ok(self)
    }

    /// Gives each descriptor that it names by number another number.
    pub fn renumber(&mut self, number: impl Fn(u32) -> u32) {
        for (_, _, file) in self.files() {
            if let FileSource::Fd(old) = file {
                *old = number(*old);
            }
        }
    }

    /// Every file with the field that names it and what it is for.
    pub(crate) fn files(&mut self) -> Vec<(String, FileUse, &mut FileSource)> {
        // Taken apart, so that nobody adds a field with a file and forgets it here.
        let Self {
            schema: _,
            memory_bytes: _,
            hotplug_bytes: _,
            give_back: _,
            cpus: _,
            nested: _,
            kernel,
            initrd,
            immutable_images: _,
            command_line: _,
            boot_protocol: _,
            platform: _,
            disks,
            rng: _,
            console,
            serial,
            log_bytes: _,
            vsock: _,
            networks,
            shares,
            spare_slots: _,
            on_reset: _,
            time_limit_ms: _,
            confine: _,
            monitor_user: _,
        } = self;
        let mut files = vec![("kernel".to_owned(), FileUse::Image, kernel)];
        files.extend(initrd.as_mut().map(|file| ("initrd".to_owned(), FileUse::Image, file)));
        for (index, disk) in disks.iter_mut().enumerate() {
            files.extend(disk.files(&format!("disks[{index}]")));
        }
        for (index, network) in networks.iter_mut().enumerate() {
            files.extend(network.files(&format!("networks[{index}].link")));
        }
        for (index, share) in shares.iter_mut().enumerate() {
            files.push(share.file(&format!("shares[{index}]")));
        }
        for (field, endpoint) in [("console", console), ("serial", serial)] {
            match endpoint {
                Endpoint::None | Endpoint::Stdio | Endpoint::Stream => {}
                Endpoint::Log(file) => files.push((field.to_owned(), FileUse::Log, file)),
                Endpoint::Pair { input, output } => {
                    files.push((field.to_owned(), FileUse::Input, input));
                    files.push((field.to_owned(), FileUse::Output, output));
                }
            }
        }
        files
    }
}

impl FileSource {
    /// The same file, by an absolute path if by a path, for the config's `field`.
    ///
    /// # Errors
    /// As of [`MachineConfig::with_absolute_paths`].
    pub fn with_absolute_path(self, field: &str) -> Result<Self, ConfigError> {
        match self {
            Self::Path(path) => absolute(field, &path).map(Self::Path),
            Self::Fd(number) => Ok(Self::Fd(number)),
        }
    }
}

/// The descriptor that a path stands for.
fn descriptor(path: &Path) -> Option<u32> {
    let mut directories = ["/dev/fd", "/proc/self/fd"].into_iter();
    directories.find_map(|directory| path.strip_prefix(directory).ok()?.to_str()?.parse().ok())
}

fn absolute(field: &str, path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path)
        .map_err(|error| ConfigError::new(field, format!("cannot resolve the path {path:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        DiskConfig, DiskId, MacAddress, NetworkConfig, NetworkId, NetworkLink, ShareConfig, ShareTag,
        TapLink, VsockConfig,
    };

    fn machine() -> MachineConfig {
        let path = |name: &str| FileSource::Path(name.into());
        let disk = |id: &str, source| DiskConfig::new(DiskId::new(id).unwrap(), source, false);
        let mut config = MachineConfig::new(path("vmlinux"));
        config.initrd = Some(FileSource::Fd(7));
        config.disks = vec![disk("a", path("/disks/a")), disk("b", FileSource::Fd(3)), disk("c", path("c"))];
        config.console = Endpoint::Log(path("log"));
        config.serial = Endpoint::Pair { input: FileSource::Fd(0), output: path("out") };
        let network =
            |id: &str, link| NetworkConfig::new(NetworkId::new(id).unwrap(), MacAddress::from_seed(id), link);
        let queues = vec![FileSource::Fd(8)];
        config.networks = vec![
            network("a", NetworkLink::Stream(path("passt"))),
            network("b", NetworkLink::Tap(TapLink { queues, ..TapLink::default() })),
            network("c", NetworkLink::VhostUser(path("ovs"))),
        ];
        let share = |tag: &str, source| ShareConfig::new(ShareTag::new(tag).unwrap(), source, true);
        config.shares = vec![share("a", path("shared")), share("b", FileSource::Fd(9))];
        config.vsock = Some(VsockConfig { unix_socket: Some("socket".into()), ..VsockConfig::default() });
        config
    }

    #[test]
    fn every_descriptor_is_named_and_every_path_becomes_absolute() {
        let here = std::env::current_dir().unwrap();
        let mut config = machine().with_absolute_paths().unwrap();
        assert_eq!(config.descriptors(), [7, 3, 8, 9, 0]);
        let mut renumbered = config.clone();
        renumbered.renumber(|number| number + 20);
        assert_eq!(renumbered.descriptors(), [27, 23, 28, 29, 20]);
        config.initrd = Some(FileSource::Path("/dev/fd/12".into()));
        assert_eq!(config.descriptors(), [12, 3, 8, 9, 0]);
        config.initrd = None;
        let paths: Vec<_> = config
            .files()
            .into_iter()
            .filter_map(|(field, _, file)| match file {
                FileSource::Path(path) => Some((field, path.clone())),
                FileSource::Fd(_) => None,
            })
            .collect();
        let expected = [
            ("kernel", here.join("vmlinux")),
            ("disks[0]", "/disks/a".into()),
            ("disks[2]", here.join("c")),
            ("networks[0].link.stream", here.join("passt")),
            ("networks[2].link.vhost_user", here.join("ovs")),
            ("shares[0].source", here.join("shared")),
            ("console", here.join("log")),
            ("serial", here.join("out")),
        ];
        assert_eq!(paths, expected.map(|(field, path)| (field.to_owned(), path)));
        assert_eq!(config.vsock.unwrap().unix_socket.unwrap(), here.join("socket"));
        let mut empty = machine();
        empty.disks[2].source = FileSource::Path(PathBuf::new());
        assert_eq!(empty.with_absolute_paths().unwrap_err().field, "disks[2]");
    }
}

//! What ships with Nelly: monitor, kernel, initramfs, built-in image, and the manifest that the
//! build writes beside them.

use std::io;
use std::path::{Path, PathBuf};

use nelly_image::Unpacker;
use nelly_vmm::config::Platform;
use serde::Deserialize;

/// The schema of [`AssetManifest`] that this build reads.
const SCHEMA: u32 = 1;

/// Why an installation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// The manifest is there and cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The manifest.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The manifest is not JSON, or lacks a field.
    #[error("cannot use {}", .path.display())]
    Json {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, and where.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest is of another time.
    #[error("{} has schema {found}, but this nelly reads schema {SCHEMA}: both have to be of one build", .path.display())]
    Schema {
        /// The manifest.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// There is no manifest.
    #[error("kernel and initramfs are not installed: there is no assets.json in {}", listed(.tried))]
    Missing {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// A program of Nelly's is missing.
    #[error("the {name} program was not found; looked for {}", listed(.tried))]
    Program {
        /// Its name.
        name: &'static str,
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
}

fn listed(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// `assets.json`, written by the build beside the files it describes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AssetManifest {
    /// 1.
    schema: u32,
    /// Build id of kernel, initramfs and built-in image.
    pub build_id: String,
    /// File name of the kernel.
    pub kernel: String,
    /// How the kernel learns of the hardware. Knowing it here saves reading it out of the image at
    /// each boot.
    pub platform: Platform,
    /// File name of the initramfs.
    pub initramfs: String,
    /// Directory name of the built-in image's OCI layout.
    pub builtin: String,
    /// File name of the ext4 file system that the disks of writable layers begin as; a build before
    /// there was one has none.
    pub storage: Option<String>,
    /// Name and version of the source that the kernel was built from, e.g.
    /// `linux-source-6.12-6.12.117-1~deb12u1`.
    pub kernel_source: Option<String>,
}

impl AssetManifest {
    /// Reads `assets.json` in `directory`; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, is no manifest, or one of another schema.
    pub fn read(directory: &Path) -> Result<Option<Self>, InstallationError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let path = directory.join("assets.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(InstallationError::Read { path, source }),
        };
        // Of another schema nothing else is known, so that is asked first.
        match serde_json::from_slice(&text) {
            Ok(Schema { schema: SCHEMA }) => {}
            Ok(Schema { schema: found }) => return Err(InstallationError::Schema { path, found }),
            Err(source) => return Err(InstallationError::Json { path, source }),
        }
        serde_json::from_slice(&text).map(Some).map_err(|source| InstallationError::Json { path, source })
    }
}

/// Where the parts of an installation are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The directory of the programs: assets lie in `../share/nelly` of it or in it, the other
    /// programs in it or in `../libexec/nelly`.
    pub bin: PathBuf,
    /// A user's own directory, where assets are looked for last.
    pub data: Option<PathBuf>,
}

impl Search {
    /// The first directory that holds an `assets.json`, with what it says.
    ///
    /// # Errors
    /// None does (the directories are named), or the file is not what it should be.
    pub fn manifest(&self) -> Result<(PathBuf, AssetManifest), InstallationError> {
        let beside = [self.bin.join("../share/nelly"), self.bin.clone()];
        let tried: Vec<PathBuf> = beside.into_iter().chain(self.data.clone()).collect();
        for directory in &tried {
            if let Some(manifest) = AssetManifest::read(directory)? {
                return Ok((directory.clone(), manifest));
            }
        }
        Err(InstallationError::Missing { tried })
    }

    /// The `nelly-monitor` program.
    ///
    /// # Errors
    /// There is none; the error says where it was looked for.
    pub fn monitor(&self) -> Result<PathBuf, InstallationError> {
        self.program("nelly-monitor")
    }

    /// The `nelly-keeper` program.
    ///
    /// # Errors
    /// There is none; the error says where it was looked for.
    pub fn keeper(&self) -> Result<PathBuf, InstallationError> {
        self.program("nelly-keeper")
    }

    /// The `nelly-usernet` program, of user-mode networks.
    ///
    /// # Errors
    /// There is none; the error says where it was looked for.
    pub fn usernet(&self) -> Result<PathBuf, InstallationError> {
        self.program("nelly-usernet")
    }

    /// The `nelly-switch` program, of networks of machines.
    ///
    /// # Errors
    /// There is none; the error says where it was looked for.
    pub fn switch(&self) -> Result<PathBuf, InstallationError> {
        self.program("nelly-switch")
    }

    /// The `nelly-unpack` program, which is looked for when an image is to be unpacked.
    #[must_use]
    pub fn unpacker(&self) -> Unpacker {
        Unpacker::at(self.places("nelly-unpack"))
    }

    /// Where a program may be.
    fn places(&self, name: &str) -> Vec<PathBuf> {
        vec![self.bin.join(name), self.bin.join("../libexec/nelly").join(name)]
    }

    fn program(&self, name: &'static str) -> Result<PathBuf, InstallationError> {
        let tried = self.places(name);
        match tried.iter().find(|path| path.is_file()) {
            Some(path) => Ok(path.clone()),
            None => Err(InstallationError::Program { name, tried }),
        }
    }
}

/// An installation, for those who embed Nelly: `PREFIX/bin`, `PREFIX/libexec/nelly` and
/// `PREFIX/share/nelly`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The `nelly-monitor` program.
    pub monitor: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// The built-in image's OCI layout.
    pub builtin: PathBuf,
    /// What the disks of writable layers begin as: see [`crate::state::storage`].
    pub storage: Option<PathBuf>,
    /// How the kernel learns of the hardware.
    pub platform: Platform,
    /// Build id of kernel, initramfs and built-in image; the agent says it again in its greeting.
    pub build_id: String,
    search: Search,
}

impl Installation {
    /// The `nelly-keeper` program, which sandboxes that stay need.
    ///
    /// # Errors
    /// There is none; the error says where it was looked for.
    pub fn keeper(&self) -> Result<PathBuf, InstallationError> {
        self.search.keeper()
    }

    /// The `nelly-usernet` program, which user-mode networks need.
    ///
    /// # Errors
    /// There is none; the error says where it was looked for.
    pub fn usernet(&self) -> Result<PathBuf, InstallationError> {
        self.search.usernet()
    }

    /// The `nelly-unpack` program, which unpacks images.
    #[must_use]
    pub fn unpacker(&self) -> Unpacker {
        self.search.unpacker()
    }

    /// The installation below `prefix`.
    ///
    /// # Errors
    /// It has no manifest or no monitor, or a manifest of another schema. That the other files
    /// exist is seen when they are opened.
    pub fn at(prefix: &Path) -> Result<Self, InstallationError> {
        let search = Search { bin: prefix.join("bin"), data: None };
        let (share, manifest) = search.manifest()?;
        Ok(Self {
            monitor: search.monitor()?,
            kernel: share.join(manifest.kernel),
            initramfs: share.join(manifest.initramfs),
            builtin: share.join(manifest.builtin),
            storage: manifest.storage.map(|name| share.join(name)),
            platform: manifest.platform,
            build_id: manifest.build_id,
            search,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"schema":1,"build_id":"b1","kernel":"vmlinux","platform":"mptable","initramfs":"i.cpio","builtin":"busybox"}"#;

    #[test]
    fn an_installation_is_found_whole_or_says_what_is_missing() {
        let top = tempfile::tempdir().unwrap();
        let (bin, share) = (top.path().join("bin"), top.path().join("share/nelly"));
        let error = Installation::at(top.path()).unwrap_err();
        assert!(matches!(error, InstallationError::Missing { ref tried } if tried.len() == 2), "{error}");
        std::fs::create_dir_all(&share).unwrap();
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(share.join("assets.json"), GOOD).unwrap();
        let error = Installation::at(top.path()).unwrap_err().to_string();
        assert!(error.contains("bin/nelly-monitor") && error.contains("libexec"), "{error}");
        std::fs::write(bin.join("nelly-monitor"), "").unwrap();
        let found = Installation::at(top.path()).unwrap();
        let kernel = bin.join("../share/nelly/vmlinux");
        assert_eq!((found.platform, found.kernel), (Platform::Mptable, kernel));
        // A user's own is the last choice, and one where nothing else is.
        let data = top.path().join("data");
        let search = |bin: &str| Search { bin: top.path().join(bin), data: Some(data.clone()) };
        let error = search("elsewhere").manifest().unwrap_err().to_string();
        assert!(error.contains("elsewhere") && error.contains("data"), "{error}");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("assets.json"), GOOD).unwrap();
        assert_eq!(search("elsewhere").manifest().unwrap().0, data);
        assert_ne!(search("bin").manifest().unwrap().0, data);
    }

    #[test]
    fn a_manifest_of_another_kind_is_refused() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(AssetManifest::read(top.path()).unwrap(), None);
        for (text, wanted) in
            [("", "cannot use"), ("{\"schema\":1}", "cannot use"), ("{\"schema\":2}", "schema 2")]
        {
            std::fs::write(top.path().join("assets.json"), text).unwrap();
            let error = AssetManifest::read(top.path()).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("assets.json"), "{error}");
        }
    }
}

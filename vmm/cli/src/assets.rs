//! The installed assets: kernel, initramfs, built-in image, monitor. Finds them and records where
//! each of them comes from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nelly_sandbox::spec::Network;
use nelly_sandbox::spec::installation::{AssetManifest, InstallationError, Search};
use nelly_vmm::config::Platform;

use crate::advice;
use crate::fail::Hint;
use crate::settings::{SettingSource, Settings};

/// A file of the installation, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asset {
    pub(crate) path: PathBuf,
    pub(crate) source: String,
}

/// The first directory with an `assets.json`, and its contents.
///
/// # Errors
/// There is none, or the file is invalid.
pub(crate) fn manifest(search: &Search) -> Result<(PathBuf, AssetManifest)> {
    match search.manifest() {
        Err(error @ InstallationError::Missing { .. }) => Err(Hint::error(
            error.to_string(),
            format!("{}; --kernel and --initrd name other files", advice::install()),
        )),
        found => Ok(found?),
    }
}

/// The `nelly-monitor` program, from the settings or the installation.
///
/// # Errors
/// It was not found.
pub(crate) fn monitor(search: &Search, settings: &Settings) -> Result<Asset> {
    if let Some((path, source)) = settings.path("monitor", None) {
        return existing(path, &source);
    }
    match search.monitor() {
        Ok(path) => Ok(Asset { path, source: "beside nelly".into() }),
        Err(error) => Err(Hint::error(
            error.to_string(),
            format!("{}; NELLY_MONITOR names another program", advice::install()),
        )),
    }
}

/// The `nelly-usernet` program of a network that needs it.
///
/// # Errors
/// The network needs it, and it was not found.
pub(crate) fn usernet(search: &Search, network: &Network) -> Result<Option<PathBuf>> {
    match (network, search.usernet()) {
        (_, Ok(path)) => Ok(Some(path)),
        (Network::User(_), Err(error)) => {
            let hint = format!("{}; --net none does without a network", advice::install());
            Err(Hint::error(error.to_string(), hint))
        }
        (_, Err(_)) => Ok(None),
    }
}

/// The files that `run` needs.
#[derive(Debug)]
pub(crate) struct Assets {
    pub(crate) kernel: Asset,
    pub(crate) initrd: Asset,
    /// The built-in image's OCI layout.
    pub(crate) builtin: Option<PathBuf>,
    /// How the hardware is described to the kernel, from the manifest; `None` for a kernel that is
    /// not the installed one.
    pub(crate) platform: Option<Platform>,
    /// Build id of the installed assets.
    pub(crate) build_id: Option<String>,
    /// The source of the installed kernel, with its version; `None` for another kernel.
    pub(crate) kernel_source: Option<String>,
}

impl Assets {
    /// Finds kernel and initramfs: flag, environment, configuration file, installation.
    pub(crate) fn find(
        search: &Search,
        settings: &Settings,
        kernel: Option<&Path>,
        initrd: Option<&Path>,
    ) -> Result<Self> {
        let kernel = settings.path("kernel", kernel);
        let initrd = settings.path("initrd", initrd);
        let manifest = match manifest(search) {
            Ok(found) => Some(found),
            // If both files are given, only the built-in image of the installation may be needed.
            Err(_) if kernel.is_some() && initrd.is_some() => None,
            Err(error) => return Err(error),
        };
        let installed = |name: fn(&AssetManifest) -> &str| {
            let (directory, manifest) = manifest.as_ref()?;
            Some(Asset { path: directory.join(name(manifest)), source: "installed".into() })
        };
        let own_kernel = kernel.is_none();
        let pick = |named: Option<(PathBuf, SettingSource)>, name: fn(&AssetManifest) -> &str| match named {
            Some((path, source)) => existing(path, &source),
            None => {
                let asset = installed(name).unwrap_or_else(|| unreachable!("a manifest or a name"));
                if !asset.path.is_file() {
                    return Err(Hint::error(
                        format!("{} is missing", asset.path.display()),
                        advice::install(),
                    ));
                }
                Ok(asset)
            }
        };
        Ok(Self {
            kernel: pick(kernel, |manifest| &manifest.kernel)?,
            initrd: pick(initrd, |manifest| &manifest.initramfs)?,
            builtin: installed(|manifest| &manifest.builtin).map(|asset| asset.path),
            platform: manifest.as_ref().filter(|_| own_kernel).map(|(_, manifest)| manifest.platform),
            kernel_source: manifest
                .as_ref()
                .filter(|_| own_kernel)
                .and_then(|(_, manifest)| manifest.kernel_source.clone()),
            build_id: manifest.map(|(_, manifest)| manifest.build_id),
        })
    }
}

fn existing(path: PathBuf, source: &SettingSource) -> Result<Asset> {
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() => Ok(Asset { path, source: source.to_string() }),
        Ok(_) => bail!("{} (from {source}) is not a file", path.display()),
        Err(error) => Err(error).with_context(|| format!("cannot use {} (from {source})", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(directory: &Path) {
        std::fs::create_dir_all(directory).unwrap();
        let manifest = r#"{"schema":1,"build_id":"b1","kernel":"vmlinux","platform":"mptable","initramfs":"i.cpio","builtin":"busybox"}"#;
        std::fs::write(directory.join("assets.json"), manifest).unwrap();
        std::fs::write(directory.join("vmlinux"), "k").unwrap();
        std::fs::write(directory.join("i.cpio"), "i").unwrap();
    }

    #[test]
    fn share_beats_the_data_directory_and_a_flag_beats_both() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path().join("data");
        let search = Search { bin: top.path().join("bin"), data: Some(data.clone()) };
        std::fs::create_dir_all(top.path().join("bin")).unwrap();
        let settings = Settings::default();
        let error = Assets::find(&search, &settings, None, None).unwrap_err().to_string();
        assert!(error.contains("assets.json"), "{error}");
        install(&data);
        let found = Assets::find(&search, &settings, None, None).unwrap();
        assert_eq!(found.kernel.path, data.join("vmlinux"));
        install(&top.path().join("share/nelly"));
        let found = Assets::find(&search, &settings, None, None).unwrap();
        assert_eq!(found.kernel.path, top.path().join("bin/../share/nelly/vmlinux"));
        assert_eq!(found.platform, Some(Platform::Mptable));
        let own = top.path().join("mine");
        std::fs::write(&own, "k").unwrap();
        let found = Assets::find(&search, &settings, Some(&own), None).unwrap();
        assert_eq!((found.kernel.path, found.kernel.source.as_str()), (own, "--kernel"));
        assert_eq!(found.platform, None);
        let gone = top.path().join("gone");
        let error = Assets::find(&search, &settings, Some(&gone), None).unwrap_err();
        assert!(format!("{error:#}").contains("gone"));
    }
}

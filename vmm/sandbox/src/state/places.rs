//! Directories on the host: data, cache, configuration (XDG, else where the system keeps such files
//! of a user, or all below NELLY_HOME).

use std::path::PathBuf;

use nelly_image::trusted::{TrustError, TrustedDir};

use crate::sys;

/// The directories of a user. They are not created here. Their contents are trusted (kernels,
/// images, settings), so they must belong to the caller or root and must not be writable by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Images and kept sandboxes.
    pub data: PathBuf,
    /// Files that can be built or downloaded again.
    pub cache: PathBuf,
    /// The directory of `config.toml`.
    pub config: PathBuf,
}

/// The environment does not specify the directories.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("none of NELLY_HOME, {0} and HOME is set to an absolute path")]
pub struct NoHome(&'static str);

impl Places {
    /// Reads them from an environment (`std::env::var_os`, or a table in tests).
    ///
    /// # Errors
    /// A directory's own variable, NELLY_HOME and HOME are all unset or relative.
    pub fn from_env(get: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, NoHome> {
        // According to the XDG specification, relative paths are ignored.
        let absolute = |name: &str| get(name).filter(|path| path.is_absolute());
        let place = |own: &'static str, below_nelly: &str, below_home: &str| match absolute("NELLY_HOME") {
            Some(home) => Ok(home.join(below_nelly)),
            None => match (absolute(own), absolute("HOME")) {
                (Some(dir), _) => Ok(dir.join("nelly")),
                (None, Some(home)) => Ok(home.join(below_home).join("nelly")),
                (None, None) => Err(NoHome(own)),
            },
        };
        Ok(Self {
            data: place("XDG_DATA_HOME", "data", sys::HOME.data)?,
            cache: place("XDG_CACHE_HOME", "cache", sys::HOME.cache)?,
            config: place("XDG_CONFIG_HOME", "config", sys::HOME.config)?,
        })
    }

    /// The local store of images ([`nelly_image::LocalStore`]).
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Sandboxes that stay.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }

    /// Networks of machines.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.data.join("networks")
    }

    /// Those that no guest may write to: who writes there says what runs on this host.
    #[must_use]
    pub fn own(&self) -> Vec<PathBuf> {
        let [images, sandboxes] = [self.images(), self.sandboxes()];
        vec![self.data.clone(), self.cache.clone(), self.config.clone(), images, sandboxes, self.networks()]
    }

    /// Checks the data directory, if it exists. The image store checks the cache, and `config.toml`
    /// is checked when it is opened with [`nelly_image::trusted::open_file`].
    ///
    /// # Errors
    /// It, or a parent, belongs to another user or is writable by others.
    pub fn check(&self) -> Result<(), TrustError> {
        TrustedDir::open(&self.data)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nelly_home_moves_all_then_xdg_then_home() {
        let with = |table: &[(&str, &str)]| {
            Places::from_env(|name| table.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        let moved = with(&[("NELLY_HOME", "/n"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]).unwrap();
        assert_eq!(moved.cache, PathBuf::from("/n/cache"));
        let xdg = with(&[("XDG_CACHE_HOME", "/c"), ("XDG_DATA_HOME", "relative"), ("HOME", "/h")]).unwrap();
        assert_eq!(xdg.cache, PathBuf::from("/c/nelly"));
        assert_eq!(xdg.data, PathBuf::from("/h").join(sys::HOME.data).join("nelly"));
        assert_eq!(with(&[]), Err(NoHome("XDG_DATA_HOME")));
    }

    #[test]
    fn a_data_directory_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let places = Places::from_env(|name| (name == "NELLY_HOME").then(|| home.path().into())).unwrap();
        places.check().unwrap();
        std::fs::create_dir(&places.data).unwrap();
        places.check().unwrap();
        std::fs::set_permissions(&places.data, std::fs::Permissions::from_mode(0o777)).unwrap();
        let message = places.check().unwrap_err().to_string();
        assert!(message.starts_with(&places.data.display().to_string()), "{message}");
    }
}

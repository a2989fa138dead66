//! An installation, and a user's directories.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Builder, Error, Sandbox, blocking};
use crate::connect::Connection;
use crate::connect::launch::{launch, open_files};
use crate::spec::Installation;
use crate::state::{Places, SandboxDir, SandboxLock, Sandboxes};

/// How long a keeper that has said its last word may take to be gone.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);

/// An installation of Nelly, and the directories of the user for whom it works. Cheap to clone;
/// any number of sandboxes can be made with one.
#[derive(Clone, Debug)]
pub struct Nelly {
    installation: Arc<Installation>,
    places: Arc<Places>,
}

impl Nelly {
    /// The installation below `prefix` (`/usr` of a package, `target/nelly` of a build), and the
    /// directories that the environment names: `NELLY_HOME`, or those of XDG.
    ///
    /// # Errors
    /// The installation is not there or of another version, the environment names no directory, or
    /// others can write to the data directory.
    pub fn at(prefix: impl AsRef<Path>) -> Result<Self, Error> {
        let places = Places::from_env(|name| std::env::var_os(name).map(PathBuf::from))?;
        Self::with_places(prefix, places)
    }

    /// The same with these directories, whatever the environment says.
    ///
    /// # Errors
    /// As [`Nelly::at`].
    pub fn with_places(prefix: impl AsRef<Path>, places: Places) -> Result<Self, Error> {
        places.check()?;
        // The records of sandboxes name its files.
        let prefix = std::path::absolute(prefix).map_err(Error::host("use the installation's prefix"))?;
        let installation = Arc::new(Installation::at(&prefix)?);
        Ok(Self { installation, places: Arc::new(places) })
    }

    /// The installation.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The directories.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Describes a sandbox that runs `image`: a name in the local store (`nelly image pull`), or
    /// another form that `nelly run` takes, such as `oci:DIR` or `builtin:busybox`. Nothing is read
    /// or started before [`Builder::start`], [`Builder::keep`] or [`Builder::output`].
    pub fn sandbox(&self, image: impl Into<String>) -> Builder {
        Builder::new(self.clone(), image.into())
    }

    /// [`connect`] with these directories.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(&self, word: &str) -> Result<Sandbox, Error> {
        connect(&self.places, word).await
    }

    /// Starts a sandbox that stays and does not run, as `nelly start` does, and connects to it.
    ///
    /// # Errors
    /// There is none, it runs, a file of it is gone, or its container does not run.
    pub async fn start(&self, word: &str) -> Result<Sandbox, Error> {
        let (nelly, word) = (self.clone(), word.to_owned());
        let found = blocking(move || {
            let (sandboxes, sandbox) = find(&nelly.places, &word)?;
            let lock = sandboxes.lock_ended(&sandbox, LAST_WORDS)?;
            let image = sandbox.record()?.image;
            let disks: std::io::Result<Vec<File>> = image.disk_paths.iter().map(File::open).collect();
            let disks = match disks {
                Ok(disks) if disks.is_empty() => Err(std::io::ErrorKind::NotFound.into()),
                disks => disks,
            };
            let what = "open the disk of the sandbox's image: `nelly start` makes it anew";
            let disks = disks.map_err(Error::host(what))?;
            nelly.launch(&sandboxes, &sandbox, lock, disks)?;
            Ok::<_, Error>((sandboxes, sandbox))
        });
        Sandbox::kept(found.await?).await
    }

    /// Starts the keeper of a sandbox whose lock the caller holds, and waits until its container
    /// runs. Blocks.
    pub(super) fn launch(
        &self,
        sandboxes: &Sandboxes,
        sandbox: &SandboxDir,
        lock: SandboxLock,
        disks: Vec<File>,
    ) -> Result<(), Error> {
        let record = sandbox.record()?;
        let files = open_files(sandbox, &record, lock, disks, None)?;
        let keeper = self.installation.keeper()?;
        launch(&keeper, sandboxes.path(), record.id, files, None)?;
        Ok(())
    }
}

fn find(places: &Places, word: &str) -> Result<(Sandboxes, SandboxDir), Error> {
    let missing = || crate::state::StateError::Missing { word: word.to_owned() };
    let sandboxes = Sandboxes::open(&places.sandboxes())?.ok_or_else(missing)?;
    let sandbox = sandboxes.find(word)?;
    Ok((sandboxes, sandbox))
}

/// Connects to a sandbox that a keeper holds, by its name, its id or the beginning of its id. It
/// needs no installation, and whoever made the sandbox may be gone.
///
/// # Errors
/// There is no such sandbox, it does not run, or its keeper cannot be reached.
pub async fn connect(places: &Places, word: &str) -> Result<Sandbox, Error> {
    let (places, word) = (places.clone(), word.to_owned());
    Sandbox::kept(blocking(move || find(&places, &word)).await?).await
}

impl Sandbox {
    /// The sandbox whose directory this is.
    pub(super) async fn kept((sandboxes, sandbox): (Sandboxes, SandboxDir)) -> Result<Self, Error> {
        let connection = Connection::to(&sandbox).await?;
        let name = sandbox.record()?.name;
        Ok(Self::of_keeper(sandbox.id(), name, connection, sandboxes, sandbox))
    }
}

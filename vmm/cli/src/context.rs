//! What every verb needs: settings, places, where the installation is.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nelly_sandbox::spec::installation::Search;
use nelly_sandbox::state::record::SandboxRecord;
use nelly_sandbox::state::{Places, SandboxDir, SandboxLock};
use nelly_sandbox::wire::order::Files;

use crate::settings::Settings;

/// Opens what a booted machine is started with, whose lock this process holds.
pub(crate) type OpenBoot = fn(&Context, &SandboxDir, &SandboxRecord, SandboxLock) -> Result<Files>;

/// Read once, at the start.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) places: Places,
    /// The running program.
    pub(crate) program: PathBuf,
    pub(crate) search: Search,
    /// `boot` stands above the verbs that start again what it made.
    pub(crate) open_boot: OpenBoot,
}

impl Context {
    /// Reads environment and configuration file; writes nothing.
    pub(crate) fn load(open_boot: OpenBoot) -> Result<Self> {
        let places = Places::from_env(|name| std::env::var_os(name).map(Into::into))?;
        places.check().context("refusing to use the data directory")?;
        let settings = Settings::load(Some(&places.config), |name| std::env::var(name).ok())?;
        let program = std::env::current_exe().context("cannot find the path of the nelly program")?;
        let bin = program.parent().map(PathBuf::from).unwrap_or_default();
        let search = Search { bin, data: Some(places.data.clone()) };
        Ok(Self { settings, places, program, search, open_boot })
    }
}

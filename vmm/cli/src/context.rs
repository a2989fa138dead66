//! What every verb needs: settings, places, where the installation is.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nelly_sandbox::spec::installation::Search;
use nelly_sandbox::state::record::SandboxRecord;
use nelly_sandbox::state::{Places, SandboxDir, SandboxLock};
use nelly_sandbox::wire::order::Files;

use crate::settings::Settings;

/// What `boot` does for the verbs that start again what it made, and below which they stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BootedMachines {
    /// Opens what a machine is started with, whose lock this process holds.
    pub(crate) open: fn(&Context, &SandboxDir, &SandboxRecord, SandboxLock) -> Result<Files>,
    /// Whether one that runs could be started again.
    pub(crate) check_running: fn(&Context, &SandboxDir, &SandboxRecord) -> Result<()>,
}

/// Read once, at the start.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) places: Places,
    /// The running program.
    pub(crate) program: PathBuf,
    pub(crate) search: Search,
    pub(crate) booted: BootedMachines,
}

impl Context {
    /// Reads environment and configuration file; writes nothing.
    pub(crate) fn load(booted: BootedMachines) -> Result<Self> {
        let places = Places::from_env(|name| std::env::var_os(name).map(Into::into))?;
        places.check().context("refusing to use the data directory")?;
        let settings = Settings::load(Some(&places.config), |name| std::env::var(name).ok())?;
        let program = std::env::current_exe().context("cannot find the path of the nelly program")?;
        let bin = program.parent().map(PathBuf::from).unwrap_or_default();
        let search = Search { bin, data: Some(places.data.clone()) };
        Ok(Self { settings, places, program, search, booted })
    }
}

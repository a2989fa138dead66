//! What every verb needs: settings, places, where the installation is.

use anyhow::{Context as _, Result};
use nelly_sandbox::state::Places;

use crate::assets::Search;
use crate::settings::Settings;

/// Read once, at the start.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) places: Places,
    pub(crate) search: Search,
}

impl Context {
    /// Reads environment and configuration file; writes nothing.
    pub(crate) fn load() -> Result<Self> {
        let places = Places::from_env(|name| std::env::var_os(name).map(Into::into))?;
        places.check().context("the data directory is not used")?;
        let settings = Settings::load(Some(&places.config), |name| std::env::var(name).ok())?;
        let program = std::env::current_exe().context("cannot find the running program")?;
        let search = Search { program, data: places.data.clone() };
        Ok(Self { settings, places, search })
    }
}

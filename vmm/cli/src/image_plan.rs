//! What the verbs that find out how an image boots have in common.

use std::path::Path;

use anyhow::Error;
use nelly_cloud::CloudError;

use crate::fail::{Hint, Usage};

/// The console of a machine of Nelly.
pub(crate) const CONSOLE: &str = "ttyS0";

/// Why it is not known how an image boots, with what to do.
pub(crate) fn advised(error: CloudError, path: &Path) -> Error {
    let failed = format!("cannot find out how {} boots", path.display());
    match error {
        CloudError::Nothing { .. } => Hint::error(
            format!("{failed}: {error}"),
            "give the kernel itself: nelly boot --kernel FILE --initrd FILE --disk IMAGE --append 'root=/dev/vda1'",
        ),
        CloudError::NoEntry { .. } => Usage::error(format!("{}: {error}", path.display())),
        other => Error::new(other).context(failed),
    }
}

//! The `version` file of a directory: the form of what is in it, so that another program's is
//! refused.

use std::io::Read;

use crate::trusted::{TrustError, TrustedDir, io_error};

/// The name of the file.
pub(crate) const NAME: &str = "version";
/// A version file is shorter than this.
const BYTES_MAX: u64 = 64;

/// The beginning of the version file of `dir`; `None` if it has none.
pub(crate) fn read(dir: &TrustedDir) -> Result<Option<Vec<u8>>, TrustError> {
    let Some(file) = dir.read(NAME)? else { return Ok(None) };
    let mut found = Vec::new();
    file.take(BYTES_MAX)
        .read_to_end(&mut found)
        .map_err(|source| io_error("read", &dir.path().join(NAME), source))?;
    Ok(Some(found))
}

/// What was found, for messages.
pub(crate) fn shown(found: &[u8]) -> String {
    String::from_utf8_lossy(found).trim_end().to_owned()
}

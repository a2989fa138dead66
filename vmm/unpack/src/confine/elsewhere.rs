//! Systems whose layers are not used.

use std::io;

use nelly_image::Order;

use super::ConfineError;

#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(super) fn begin() -> io::Result<()> {
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(super) fn confine(_: &Order) -> Result<Vec<&'static str>, ConfineError> {
    Ok(Vec::new())
}

#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(super) fn confine_to_streams() -> Result<Vec<&'static str>, ConfineError> {
    Ok(Vec::new())
}

#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(super) fn confine_to_archive(_: u64) -> Result<Vec<&'static str>, ConfineError> {
    Ok(Vec::new())
}

#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(super) fn confine_to_images(_: u64) -> Result<Vec<&'static str>, ConfineError> {
    Ok(Vec::new())
}

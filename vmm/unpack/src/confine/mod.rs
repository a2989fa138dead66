//! The confinement of an unpacker.
//!
//! What is in an image was made by others, and is decompressed and parsed here. Whatever that does
//! to this process, it can read the image that it was given (or, of one of the local store, that
//! store), write to the cache, and say something to who started it. It reaches no other file, no
//! socket and no other process, and runs no program. That needs Linux 5.19 or newer, with Landlock;
//! elsewhere files are as they are for the user.
//!
//! It can write to all of the cache, where other images are too.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod linux;

use std::io;

use nelly_image::Order;

/// A layer of the confinement that this system has, and that failed.
#[derive(Debug)]
pub struct ConfineError {
    /// The layer.
    pub layer: &'static str,
    /// The system's word.
    pub source: io::Error,
}

impl std::fmt::Display for ConfineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot confine this process: {}", self.layer)
    }
}

impl std::error::Error for ConfineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Closes what whoever started this process had open, and has it end when that process does. To be
/// called first by the program.
///
/// # Errors
/// The system's refusal.
pub fn begin() -> io::Result<()> {
    linux::begin()
}

/// Gives up, for this process, which has one thread, what an order does not need. The cache's
/// directory is made if it is not there. Gives the layers that are in force: what a system does not
/// have is gone without.
///
/// # Errors
/// A layer that is there failed.
pub fn confine(order: &Order) -> Result<Vec<&'static str>, ConfineError> {
    linux::confine(order)
}

/// Gives up, for this process, which has one thread, all files but those that it has open. Gives
/// the layers that are in force.
///
/// # Errors
/// A layer that is there failed.
pub fn confine_to_streams() -> Result<Vec<&'static str>, ConfineError> {
    linux::confine_to_streams()
}

/// Gives up, for this process, which has one thread and makes no other, all files but those that it
/// has open: an archive, and what comes out of it, which gets at most `most_written` bytes. Gives
/// the layers that are in force.
///
/// # Errors
/// A layer that is there failed.
pub fn confine_to_archive(most_written: u64) -> Result<Vec<&'static str>, ConfineError> {
    linux::confine_to_archive(most_written)
}

/// Gives up, for this process, which has one thread, all files but those that it has open: those of
/// a disk image, and those that it writes, of which each gets at most `most_written` bytes. Gives
/// the layers that are in force.
///
/// # Errors
/// A layer that is there failed.
pub fn confine_to_images(most_written: u64) -> Result<Vec<&'static str>, ConfineError> {
    linux::confine_to_images(most_written)
}

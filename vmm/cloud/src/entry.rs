//! Entries of a boot loader, as plain data.

use serde::{Deserialize, Serialize};

/// What said how to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loader {
    /// GRUB's configuration.
    Grub,
    /// Files of the Boot Loader Specification.
    Bls,
    /// SYSLINUX's or EXTLINUX's configuration.
    Syslinux,
    /// Nothing: the newest kernel in `/boot`.
    Newest,
}

impl std::fmt::Display for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Grub => "grub.cfg",
            Self::Bls => "loader entries",
            Self::Syslinux => "extlinux",
            Self::Newest => "the newest kernel",
        })
    }
}

/// A file of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// Its partition's place in [`Image::slots`](crate::Image::slots).
    pub slot: usize,
    /// Its path there.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
}

/// An entry that boots a Linux kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootEntry {
    /// Its title; those of the menus above it before it, separated by `>`.
    pub title: String,
    /// What its boot loader calls it.
    pub id: String,
    /// The kernel.
    pub kernel: FileRef,
    /// The initrds, those with microcode first.
    pub initrds: Vec<FileRef>,
    /// The command line as the image has it.
    pub command_line: String,
    /// The device tree that it names, which is not used.
    pub devicetree: Option<String>,
    /// The file that says so, with its partition.
    pub source: String,
}

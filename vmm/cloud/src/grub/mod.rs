//! GRUB's scripts, as `grub-mkconfig` of Debian, Ubuntu, Fedora and Alpine makes them.
//!
//! The grammar: commands of words, ended by a new line or `;`; `if`/`elif`/`else`/`fi`,
//! `for`, `while`, `until`, `function`, `menuentry` and `submenu` with a body in braces;
//! single and double quotes, backslashes, `$name`, `${name}`, `$1`, `$?`, `$@`; comments.
//! `test` and `[` with strings, numbers, files, `!`, `-a`, `-o` and parentheses. Commands
//! that decide what boots are carried out (`set`, `load_env`, `search`, `source`,
//! `configfile`, `linux`, `initrd`, `devicetree`, `blscfg`); those that a picture or a module
//! needs do nothing. Every other one fails, as an unknown command does in GRUB, and is named
//! in [`Menu::unknown`].

mod eval;
mod syntax;
mod test_command;
#[cfg(test)]
mod tests;
mod words;

pub use eval::{Menu, evaluate};

use crate::bls::BlsEntry;

/// A script that is no sound one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct GrubError {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong.
    pub what: String,
}

/// What a file is to a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file with so many bytes.
    File(u64),
    /// A directory.
    Directory,
}

/// How `search` looks for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchBy {
    /// A file system's UUID.
    Uuid,
    /// A file system's label.
    Label,
    /// A path that is on it.
    File,
}

/// The devices that a script sees. They are called as GRUB calls them: `hd0,gpt1`.
pub trait Devices {
    /// The first device for which this holds.
    fn search(&self, by: SearchBy, value: &str) -> Option<String>;

    /// What is at a path of a device.
    fn kind(&self, device: &str, path: &str) -> Option<FileKind>;

    /// The bytes of a small file.
    fn read(&self, device: &str, path: &str) -> Option<Vec<u8>>;

    /// The entries of the Boot Loader Specification below `/loader/entries` of a device, sorted.
    fn bls(&self, device: &str) -> Vec<BlsEntry>;
}

/// A file on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The device.
    pub device: String,
    /// The path on it.
    pub path: String,
}

/// What an entry boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrubEntry {
    /// Its title; those of the menus above it before it, separated by `>`.
    pub title: String,
    /// Its id, as its title.
    pub id: String,
    /// The kernel; `None` when it boots something else.
    pub linux: Option<Place>,
    /// The initrds, in order.
    pub initrds: Vec<Place>,
    /// The command line.
    pub options: String,
    /// The device tree.
    pub devicetree: Option<Place>,
    /// What it wanted and there was not.
    pub missing: Vec<String>,
}

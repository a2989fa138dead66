//! The result: what a boot takes.

use nelly_disk::fs::FsKind;
use serde::{Deserialize, Serialize};

use crate::cloud_init;
use crate::drivers::{self, Drivers};
use crate::entry::{BootEntry, Loader};
use crate::error::CloudError;
use crate::layout::Image;
use crate::loaders;

/// Most bytes of a command line.
pub const COMMAND_LINE_MAX: usize = 4096;

/// What a boot takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    /// What said so.
    pub loader: Loader,
    /// All entries that boot a Linux kernel whose files are there, in the order of the menu.
    pub entries: Vec<BootEntry>,
    /// Which one is taken.
    pub chosen: usize,
    /// The command line with what the machine needs.
    pub command_line: String,
    /// Whether the kernel can find its root on the machine's disk.
    pub drivers: Drivers,
    /// What was looked for, and what was there.
    pub looked_for: Vec<String>,
    /// What a user may want to know.
    pub notes: Vec<String>,
}

impl BootPlan {
    /// The entry that is taken.
    #[must_use]
    pub fn entry(&self) -> &BootEntry {
        &self.entries[self.chosen]
    }
}

/// Finds out how an image boots. `console` is the device that the kernel's last `console=` has to
/// name, `ttyS0`; without one the command line stays as it is.
///
/// # Errors
/// [`CloudError`]; [`CloudError::Nothing`] says what was looked for.
pub fn find(image: &Image<'_>, console: Option<&str>) -> Result<BootPlan, CloudError> {
    find_entry(image, console, None)
}

/// The same with another entry than the image's own default: the first with this title, with this
/// id, or with a kernel of this path.
///
/// # Errors
/// As [`find`]; [`CloudError::NoEntry`] says which entries there are.
pub fn find_entry(
    image: &Image<'_>,
    console: Option<&str>,
    wanted: Option<&str>,
) -> Result<BootPlan, CloudError> {
    let mut found = loaders::find(image);
    let mut looked_for = partitions(image);
    looked_for.append(&mut found.looked_for);
    if found.entries.is_empty() {
        return Err(CloudError::Nothing { looked_for });
    }
    if let Some(wanted) = wanted {
        found.chosen = entry_named(&found.entries, wanted)?;
    }
    let entry = &found.entries[found.chosen];
    let mut notes = image.notes.clone();
    notes.append(&mut found.notes);
    if let Some(tree) = &entry.devicetree {
        notes.push(format!("the entry names the device tree {tree}, which is not used"));
    }
    let command_line = with_console(&entry.command_line, console);
    if command_line.len() > COMMAND_LINE_MAX {
        let path = entry.source.clone();
        return Err(CloudError::File {
            path,
            why: format!("a command line of more than {COMMAND_LINE_MAX} bytes"),
        });
    }
    notes.extend(root_notes(image, &command_line));
    notes.extend(cloud_init::notes(image, &command_line));
    let drivers = drivers::look(image, entry, &mut notes)?;
    Ok(BootPlan {
        loader: found.loader,
        entries: found.entries,
        chosen: found.chosen,
        command_line,
        drivers,
        looked_for,
        notes,
    })
}

/// The place of the entry that is called so.
fn entry_named(entries: &[BootEntry], wanted: &str) -> Result<usize, CloudError> {
    let names: [fn(&BootEntry) -> &str; 3] =
        [|entry| &entry.title, |entry| &entry.id, |entry| &entry.kernel.path];
    let mut places =
        names.into_iter().filter_map(|name| entries.iter().position(|entry| name(entry) == wanted));
    places.next().ok_or_else(|| CloudError::NoEntry {
        wanted: wanted.to_owned(),
        titles: entries.iter().map(|entry| entry.title.clone()).collect(),
    })
}

/// What the partitions are, for who finds nothing.
fn partitions(image: &Image<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for (index, slot) in image.slots.iter().enumerate() {
        let what =
            slot.identity.as_ref().map_or("nothing that is known".to_owned(), |found| found.kind.to_string());
        let mut line = format!("{} has {what}", slot.name());
        if let Some(FsKind::Other(name @ ("xfs" | "btrfs"))) = slot.identity.as_ref().map(|found| found.kind)
        {
            line.push_str(&format!(", which is not read: give the kernel and its initrd by nelly boot --kernel, or use an image whose /boot is not on {name}"));
        }
        if let Some(why) = &slot.why_not {
            line.push_str(&format!(", which cannot be read: {why}"));
        }
        for (is, role) in
            [(image.root, "root"), (image.boot, "/boot"), (image.esp, "the EFI system partition")]
        {
            if is == Some(index) {
                line.push_str(&format!(" ({role})"));
            }
        }
        lines.push(line);
    }
    lines
}

/// The command line with a last `console=` for the machine's console.
fn with_console(line: &str, console: Option<&str>) -> String {
    let Some(console) = console else { return line.to_owned() };
    let last = line.split_whitespace().filter_map(|word| word.strip_prefix("console=")).next_back();
    if last.is_some_and(|last| last.split(',').next() == Some(console)) {
        return line.to_owned();
    }
    format!("{line} console={console}").trim_start().to_owned()
}

fn root_notes(image: &Image<'_>, line: &str) -> Vec<String> {
    let root = line.split_whitespace().filter_map(|word| word.strip_prefix("root=")).next_back();
    let Some(root) = root else {
        return vec!["the command line has no root=, so the initrd has to know it".to_owned()];
    };
    let mut notes = Vec::new();
    let named = root.contains('=') || root.starts_with("/dev/");
    if named && !root.starts_with("/dev/mapper/") && image.by_source(root).is_none() {
        notes.push(format!("root={root} names no partition of this disk"));
    }
    if root.starts_with("/dev/") && !root.starts_with("/dev/vd") && !root.starts_with("/dev/disk/") {
        notes.push(format!("root={root} is no name of a virtio disk, whose first is /dev/vda"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_console_is_the_machine_s() {
        let table = [
            ("", "console=ttyS0"),
            ("ro", "ro console=ttyS0"),
            ("console=tty0 console=ttyS0,115200", "console=tty0 console=ttyS0,115200"),
            ("console=ttyS0 console=tty0", "console=ttyS0 console=tty0 console=ttyS0"),
            ("console=ttyS01", "console=ttyS01 console=ttyS0"),
        ];
        for (line, with) in table {
            assert_eq!(with_console(line, Some("ttyS0")), with);
            assert_eq!(with_console(line, None), line);
        }
    }
}

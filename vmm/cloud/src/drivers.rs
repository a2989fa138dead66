//! Whether a kernel can find its root on the machine's disk: the drivers that it needs are built
//! into it, or its initrd has them.

use std::collections::BTreeSet;
use std::io;

use nelly_disk::ReadAt;
use nelly_disk::fs::{FsKind, read_file};
use serde::{Deserialize, Serialize};

use crate::entry::BootEntry;
use crate::error::{CloudError, chain};
use crate::files::{INITRD_MAX, KERNEL_MAX};
use crate::initrd::{Contents, look as look_into, module_name};
use crate::layout::Image;

/// Most bytes of modules.builtin and modules.dep.
const LIST_MAX: u64 = 4 << 20;

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriverPlace {
    /// In the kernel.
    BuiltIn,
    /// A module in an initrd.
    Initrd,
    /// A module on the root file system only, which it would be needed to reach.
    RootOnly,
    /// The kernel does not have it.
    Absent,
    /// It cannot be told.
    Unknown,
}

impl std::fmt::Display for DriverPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::BuiltIn => "in the kernel",
            Self::Initrd => "in the initrd",
            Self::RootOnly => "missing in the initrd",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        })
    }
}

/// A driver that is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// Its module's name.
    pub name: String,
    /// Where it is.
    pub place: DriverPlace,
}

/// What is known of a kernel's drivers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drivers {
    /// The kernel's release, if its file says it.
    pub release: Option<String>,
    /// The drivers that a boot needs.
    pub needed: Vec<Driver>,
}

impl Drivers {
    /// Those without which the root file system is not found.
    pub fn missing(&self) -> impl Iterator<Item = &Driver> {
        self.needed
            .iter()
            .filter(|driver| matches!(driver.place, DriverPlace::RootOnly | DriverPlace::Absent))
    }
}

/// Lists of a kernel's modules.
#[derive(Default)]
struct Known {
    builtin: Option<BTreeSet<String>>,
    modules: Option<BTreeSet<String>>,
    config: Option<String>,
    initrd: Option<BTreeSet<String>>,
}

/// Looks at the kernel and the initrds of an entry.
pub(crate) fn look(
    image: &Image<'_>,
    entry: &BootEntry,
    notes: &mut Vec<String>,
) -> Result<Drivers, CloudError> {
    let kernel = image.reader(&entry.kernel)?;
    let name = image.shown(&entry.kernel);
    if kernel.len() > KERNEL_MAX {
        return Err(CloudError::File { path: name, why: format!("it has more than {KERNEL_MAX} bytes") });
    }
    let release =
        release(&kernel).map_err(|error| CloudError::File { path: name.clone(), why: chain(&error) })?;
    match &release {
        Kernel::Release(_) => {}
        Kernel::Other => notes.push(format!("{name} is no bzImage, so its release is not known")),
    }
    let release = match release {
        Kernel::Release(release) => Some(release),
        Kernel::Other => None,
    };
    let mut known = Known::default();
    if let Some(release) = &release {
        lists(image, release, &mut known);
    }
    initrds(image, entry, &mut known, notes)?;
    let mut needed = vec!["virtio_mmio".to_owned(), "virtio_blk".to_owned()];
    let root = image.root.and_then(|root| image.slots[root].identity.as_ref());
    match root.map(|found| found.kind) {
        Some(FsKind::Ext) => needed.push("ext4".to_owned()),
        Some(FsKind::Other(name @ ("xfs" | "btrfs"))) => needed.push(name.to_owned()),
        _ => {}
    }
    let needed = needed.into_iter().map(|name| Driver { place: place(&known, &name), name }).collect();
    Ok(Drivers { release, needed })
}

/// What a kernel's file says of itself.
enum Kernel {
    Release(String),
    Other,
}

/// The release in the set-up header of a bzImage (Documentation/arch/x86/boot.rst).
fn release(kernel: &dyn ReadAt) -> io::Result<Kernel> {
    let mut head = [0; 0x240];
    if kernel.len() < 0x1000 {
        return Ok(Kernel::Other);
    }
    kernel.read_exact_at(&mut head, 0)?;
    let pointer = u16::from_le_bytes([head[0x20e], head[0x20f]]);
    if &head[0x202..0x206] != b"HdrS" || pointer == 0 {
        return Ok(Kernel::Other);
    }
    let mut text = [0; 128];
    let at = u64::from(pointer) + 0x200;
    if at + 128 > kernel.len() {
        return Ok(Kernel::Other);
    }
    kernel.read_exact_at(&mut text, at)?;
    let word: Vec<u8> = text.iter().copied().take_while(|byte| byte.is_ascii_graphic()).collect();
    // It names a directory below.
    match String::from_utf8(word) {
        Ok(word) if !word.is_empty() && !word.contains('/') && word != "." && word != ".." => {
            Ok(Kernel::Release(word))
        }
        _ => Ok(Kernel::Other),
    }
}

fn names(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(|line| module_name(line.split(':').next()?)).collect()
}

/// What the root file system and `/boot` have on a release.
fn lists(image: &Image<'_>, release: &str, known: &mut Known) {
    let text = |path: &str| -> Option<String> {
        let (slot, path) = image.locate(path)?;
        let bytes = read_file(image.volume(slot)?, &path, LIST_MAX).ok()??;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    for directory in ["/lib/modules", "/usr/lib/modules"] {
        let list = |name: &str| text(&format!("{directory}/{release}/{name}")).map(|list| names(&list));
        known.builtin = known.builtin.take().or_else(|| list("modules.builtin"));
        known.modules = known.modules.take().or_else(|| list("modules.dep"));
        known.config = known.config.take().or_else(|| text(&format!("{directory}/{release}/config")));
    }
    known.config = known.config.take().or_else(|| text(&format!("/boot/config-{release}")));
}

fn initrds(
    image: &Image<'_>,
    entry: &BootEntry,
    known: &mut Known,
    notes: &mut Vec<String>,
) -> Result<(), CloudError> {
    let mut contents = Contents::default();
    let mut total = 0;
    for file in &entry.initrds {
        let reader = image.reader(file)?;
        total += reader.len();
        if total > INITRD_MAX {
            let why = format!("the initrds have more than {INITRD_MAX} bytes");
            return Err(CloudError::File { path: image.shown(file), why });
        }
        if let Err(error) = look_into(&reader, &mut contents) {
            notes.push(format!("{} cannot be looked into: {}", image.shown(file), chain(&error)));
            return Ok(());
        }
    }
    known.builtin = known.builtin.take().or_else(|| contents.builtin.as_deref().map(names));
    known.initrd = Some(contents.modules);
    Ok(())
}

fn place(known: &Known, name: &str) -> DriverPlace {
    let has = |list: &Option<BTreeSet<String>>| list.as_ref().is_some_and(|list| list.contains(name));
    let option = match name {
        "ext4" => "CONFIG_EXT4_FS".to_owned(),
        "xfs" => "CONFIG_XFS_FS".to_owned(),
        "btrfs" => "CONFIG_BTRFS_FS".to_owned(),
        _ => format!("CONFIG_{}", name.to_ascii_uppercase()),
    };
    let configured = |value: &str| {
        known
            .config
            .as_ref()
            .is_some_and(|config| config.lines().any(|line| line == format!("{option}={value}")))
    };
    if has(&known.builtin) || configured("y") {
        DriverPlace::BuiltIn
    } else if has(&known.initrd) {
        DriverPlace::Initrd
    } else if known.initrd.is_none() {
        DriverPlace::Unknown
    } else if has(&known.modules) || configured("m") {
        DriverPlace::RootOnly
    } else if known.builtin.is_some() && (known.modules.is_some() || known.config.is_some()) {
        DriverPlace::Absent
    } else {
        DriverPlace::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(
        builtin: Option<&str>,
        modules: Option<&str>,
        config: Option<&str>,
        initrd: Option<&[&str]>,
    ) -> Known {
        Known {
            builtin: builtin.map(names),
            modules: modules.map(names),
            config: config.map(ToOwned::to_owned),
            initrd: initrd.map(|names| names.iter().map(|&name| name.to_owned()).collect()),
        }
    }

    #[test]
    fn a_driver_is_where_the_lists_say() {
        let builtin = Some("kernel/drivers/virtio/virtio_mmio.ko\n");
        let dep = Some("kernel/drivers/block/virtio_blk.ko.xz: kernel/x.ko\n");
        let (none, blk): (&[&str], &[&str]) = (&[], &["virtio_blk"]);
        let table = [
            ("virtio_mmio", known(builtin, dep, None, Some(none)), DriverPlace::BuiltIn),
            ("virtio_blk", known(builtin, dep, None, Some(blk)), DriverPlace::Initrd),
            ("virtio_blk", known(builtin, dep, None, Some(none)), DriverPlace::RootOnly),
            ("ext4", known(builtin, dep, None, Some(none)), DriverPlace::Absent),
            ("ext4", known(None, None, None, Some(none)), DriverPlace::Unknown),
            ("ext4", known(None, None, Some("CONFIG_EXT4_FS=y"), Some(none)), DriverPlace::BuiltIn),
            ("ext4", known(None, None, Some("# no\nCONFIG_EXT4_FS=m"), Some(none)), DriverPlace::RootOnly),
            ("virtio_mmio", known(None, dep, None, None), DriverPlace::Unknown),
        ];
        for (index, (name, known, wanted)) in table.into_iter().enumerate() {
            assert_eq!(place(&known, name), wanted, "{index}");
        }
    }
}

//! The guest's virtio-mmio slots: binding drivers to attached devices, and unbinding a driver
//! before its device is detached.
//!
//! The machine describes its slots at boot. A slot without a device has no driver, and the kernel
//! is not notified when a device is attached, so the host calls the agent.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Length of a disk's id in bytes (virtio 1.2, 5.2.6).
const ID_BYTES: usize = 20;

/// A disk that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDisk {
    /// Its id from the host's configuration, truncated to 20 bytes.
    pub id: String,
    /// Its device node, such as `/dev/vdb`.
    pub device: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Why slots cannot be probed, or a disk cannot be released.
#[derive(Debug, Error)]
pub enum SlotError {
    /// No disk has this id.
    #[error("no such disk: {0:?}")]
    NoDisk(String),
    /// The disk is open or mounted.
    #[error("the disk {0:?} is in use")]
    InUse(String),
    /// A system call failed; the text says what was tried.
    #[error("cannot {0}")]
    Step(String, #[source] io::Error),
}

fn step(what: impl Into<String>) -> impl FnOnce(io::Error) -> SlotError {
    let what = what.into();
    move |error| SlotError::Step(what, error)
}

/// The mount points of sysfs and of the device nodes.
#[derive(Clone, Debug)]
pub struct DeviceSlots {
    sys: PathBuf,
    dev: PathBuf,
}

impl Default for DeviceSlots {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into() }
    }
}

impl DeviceSlots {
    /// Binds a driver to each device that was attached since the last call, and returns all disks,
    /// sorted by name.
    ///
    /// # Errors
    /// [`SlotError::Step`].
    pub fn probe(&self) -> Result<Vec<GuestDisk>, SlotError> {
        let platform = self.sys.join("bus/platform/devices");
        for name in names(&platform).map_err(step("list the platform devices"))? {
            if !is_slot(&name) || platform.join(&name).join("driver").exists() {
                continue;
            }
            match write(&self.driver("bind"), &name) {
                // The slot is empty.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                result => result.map_err(step(format!("bind {name} to its driver")))?,
            }
        }
        self.disks()
    }

    fn disks(&self) -> Result<Vec<GuestDisk>, SlotError> {
        let mut disks = Vec::new();
        let mut found = names(&self.sys.join("block")).map_err(step("list the disks"))?;
        found.sort_by_key(|name| (name.len(), name.clone()));
        for name in found.into_iter().filter(|name| name.starts_with("vd")) {
            let read = |file: &str| fs::read_to_string(self.sys.join("block").join(&name).join(file));
            let id = read("serial").map_err(step(format!("read the id of {name}")))?;
            let sectors = read("size").map_err(step(format!("read the size of {name}")))?;
            let sectors: u64 = sectors
                .trim()
                .parse()
                .map_err(io::Error::other)
                .map_err(step(format!("read the size of {name}")))?;
            let device = self.dev.join(&name).display().to_string();
            disks.push(GuestDisk {
                id: id.trim_end().to_owned(),
                device,
                bytes: sectors.saturating_mul(512),
            });
        }
        Ok(disks)
    }

    /// Unbinds the driver of the disk with this id, so that the host can detach the disk.
    ///
    /// # Errors
    /// [`SlotError`]; a disk that is in use is not released.
    pub fn release(&self, id: &str) -> Result<(), SlotError> {
        let cut = id.get(..ID_BYTES).unwrap_or(id);
        let disk = self.disks()?.into_iter().find(|disk| !cut.is_empty() && disk.id == cut);
        let disk = disk.ok_or_else(|| SlotError::NoDisk(id.to_owned()))?;
        // O_EXCL fails while the disk is mounted, and prevents mounts until the driver is unbound.
        let alone = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&disk.device);
        let _alone = match alone {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(SlotError::InUse(id.to_owned()));
            }
            Err(error) => return Err(step(format!("open {}", disk.device))(error)),
        };
        let name = Path::new(&disk.device).file_name().unwrap_or_default();
        let place = self.sys.join("block").join(name).join("device");
        let virtio = fs::canonicalize(&place).map_err(step(format!("find the slot of {}", disk.device)))?;
        let slot =
            virtio.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        write(&self.driver("unbind"), &slot).map_err(step(format!("unbind {slot} from its driver")))
    }

    fn driver(&self, file: &str) -> PathBuf {
        self.sys.join("bus/platform/drivers/virtio-mmio").join(file)
    }
}

/// Whether a platform device is a virtio slot. The name depends on whether the command line, ACPI
/// or a device tree describes it.
fn is_slot(name: &str) -> bool {
    name.starts_with("virtio-mmio.") || name.starts_with("LNRO0005:") || name.ends_with(".virtio_mmio")
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Writes a sysfs file in one call; never creates a file.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A guest's /sys and /dev with two slots, the first of which holds the disk `data` as vda.
    struct Board {
        top: tempfile::TempDir,
        slots: DeviceSlots,
    }

    impl Board {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            let slots = DeviceSlots { sys: top.path().join("sys"), dev: top.path().join("dev") };
            let board = Self { top, slots };
            let driver = board.slots.driver("");
            for directory in [&board.slots.dev, &driver, &board.slots.sys.join("block")] {
                fs::create_dir_all(directory).unwrap();
            }
            for name in ["virtio-mmio.0", "virtio-mmio.1", "serial8250"] {
                fs::create_dir_all(board.slots.sys.join("bus/platform/devices").join(name)).unwrap();
            }
            for file in ["bind", "unbind"] {
                fs::write(driver.join(file), "").unwrap();
            }
            board.disk(0, "vda", "data");
            board
        }

        fn disk(&self, slot: u32, name: &str, id: &str) {
            let place = self.slots.sys.join(format!("bus/platform/devices/virtio-mmio.{slot}"));
            symlink(self.slots.driver(""), place.join("driver")).unwrap();
            let virtio = place.join(format!("virtio{slot}"));
            let block = virtio.join("block").join(name);
            fs::create_dir_all(&block).unwrap();
            fs::write(block.join("serial"), format!("{id}\n")).unwrap();
            fs::write(block.join("size"), "16\n").unwrap();
            symlink(&virtio, block.join("device")).unwrap();
            symlink(&block, self.slots.sys.join("block").join(name)).unwrap();
            fs::write(self.slots.dev.join(name), "").unwrap();
        }

        fn asked(&self, file: &str) -> String {
            fs::read_to_string(self.slots.driver(file)).unwrap()
        }
    }

    #[test]
    fn slots_without_a_driver_are_probed_and_disks_are_told() {
        let board = Board::new();
        let disks = board.slots.probe().unwrap();
        assert_eq!(board.asked("bind"), "virtio-mmio.1", "not what has a driver, nor what is no slot");
        let device = |name: &str| board.top.path().join("dev").join(name).display().to_string();
        let data = GuestDisk { id: "data".into(), device: device("vda"), bytes: 8192 };
        assert_eq!(disks, std::slice::from_ref(&data));
        board.disk(1, "vdb", "late");
        let late = GuestDisk { id: "late".into(), device: device("vdb"), bytes: 8192 };
        assert_eq!(board.slots.probe().unwrap(), [data, late]);
    }

    #[test]
    fn the_slot_of_a_disk_is_found_by_its_id() {
        let board = Board::new();
        board.disk(1, "vdb", "twenty-bytes-of-name");
        for unknown in ["", "dat", "data2", "../data"] {
            assert!(matches!(board.slots.release(unknown), Err(SlotError::NoDisk(_))), "{unknown}");
        }
        assert_eq!(board.asked("unbind"), "");
        board.slots.release("twenty-bytes-of-name-and-more").unwrap();
        assert_eq!(board.asked("unbind"), "virtio-mmio.1");
    }

    #[test]
    fn slots_are_known_by_every_description() {
        for (name, slot) in [
            ("virtio-mmio.12", true),
            ("LNRO0005:0c", true),
            ("a003e00.virtio_mmio", true),
            ("PNP0501:00", false),
            ("virtio0", false),
        ] {
            assert_eq!(is_slot(name), slot, "{name}");
        }
    }
}

//! What is where on the disk of a cloud image: its partitions, and which of them are root, `/boot`
//! and the EFI system partition.

use nelly_disk::ReadAt;
use nelly_disk::fs::{FsKind, Identity, Volume, identify, list, open_volume, read_file, resolve};
use nelly_disk::partitions::{Part, Partition, PartitionTable, PartitionType, read_partitions};

use crate::error::{CloudError, chain};
use crate::fstab::{self, Mount};

/// Types of the Discoverable Partitions Specification (UAPI.2).
const ROOT_X86_64: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const XBOOTLDR: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// Most bytes of a text file that is read.
pub(crate) const TEXT_MAX: u64 = 1 << 20;

/// A disk, cut where its partition table says.
pub struct Parts<'a> {
    table: Option<PartitionTable>,
    parts: Vec<(Option<Partition>, Part<'a>)>,
}

impl<'a> Parts<'a> {
    /// Reads the partition table of `disk`; a disk without one is a part as a whole.
    ///
    /// # Errors
    /// [`CloudError`]; also for a disk of no bytes.
    pub fn read(disk: &'a dyn ReadAt) -> Result<Self, CloudError> {
        if disk.is_empty() {
            return Err(CloudError::Empty);
        }
        let mut table = read_partitions(disk, 512)?;
        let mut parts = cut(disk, table.as_ref());
        // MBR does not say how large its sectors are. They are those by which there is something.
        if table.as_ref().is_some_and(|table| table.disk.len() == 8)
            && !any_known(&parts)?
            && let Ok(Some(other)) = read_partitions(disk, 4096)
        {
            let larger = cut(disk, Some(&other));
            if any_known(&larger)? {
                (table, parts) = (Some(other), larger);
            }
        }
        Ok(Self { table, parts })
    }
}

fn cut<'a>(disk: &'a dyn ReadAt, table: Option<&PartitionTable>) -> Vec<(Option<Partition>, Part<'a>)> {
    match table {
        None => vec![(None, Part::new(disk, 0, disk.len()))],
        Some(table) => table
            .partitions
            .iter()
            .map(|partition| (Some(partition.clone()), Part::new(disk, partition.start, partition.len)))
            .collect(),
    }
}

fn any_known(parts: &[(Option<Partition>, Part<'_>)]) -> Result<bool, CloudError> {
    for (_, part) in parts {
        if identify(part)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A partition and what fills it.
pub struct Slot<'a> {
    /// The partition; `None` for a disk without a table.
    pub partition: Option<Partition>,
    /// Its bytes.
    pub bytes: u64,
    /// What fills it, if that is known.
    pub identity: Option<Identity>,
    /// The file system, if it can be read.
    pub volume: Option<Box<dyn Volume + 'a>>,
    /// Why it cannot.
    pub why_not: Option<String>,
}

impl Slot<'_> {
    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> String {
        self.partition.as_ref().map_or_else(
            || "the whole disk".to_owned(),
            |partition| format!("partition {}", partition.number),
        )
    }

    fn has_type(&self, guid: &str, bytes: &[u8]) -> bool {
        self.partition.as_ref().is_some_and(|partition| match partition.kind {
            PartitionType::Byte(kind) => bytes.contains(&kind),
            kind @ PartitionType::Guid(_) => kind.is_guid(guid),
        })
    }

    fn has(&self, path: &str) -> bool {
        self.volume.as_deref().is_some_and(|volume| matches!(resolve(volume, path), Ok(Some(_))))
    }
}

/// The disk of a cloud image, with what was found out of it.
pub struct Image<'a> {
    /// The partition table.
    pub table: Option<&'a PartitionTable>,
    /// The partitions, in the order of the table.
    pub slots: Vec<Slot<'a>>,
    /// Which one is the root file system.
    pub root: Option<usize>,
    /// Which one is `/boot`, if it is one of its own.
    pub boot: Option<usize>,
    /// Which one is the EFI system partition.
    pub esp: Option<usize>,
    /// What a user may want to know.
    pub notes: Vec<String>,
}

impl<'a> Image<'a> {
    /// Looks at all partitions.
    ///
    /// # Errors
    /// [`CloudError`]: the disk cannot be read.
    pub fn open(parts: &'a Parts<'a>) -> Result<Self, CloudError> {
        let mut slots = Vec::new();
        for (partition, part) in &parts.parts {
            let identity = identify(part)?;
            let known = identity.as_ref().is_some_and(|found| !matches!(found.kind, FsKind::Other(_)));
            let (volume, why_not) = match known.then(|| open_volume(part)) {
                Some(Ok(volume)) => (Some(volume), None),
                Some(Err(error)) => (None, Some(chain(&error))),
                None => (None, None),
            };
            slots.push(Slot { partition: partition.clone(), bytes: part.len(), identity, volume, why_not });
        }
        let table = parts.table.as_ref();
        let mut notes: Vec<String> = table.map(|table| table.notes.clone()).unwrap_or_default();
        for slot in &slots {
            let of = slot.volume.iter().flat_map(|volume| volume.notes());
            notes.extend(of.map(|note| format!("{}: {note}", slot.name())));
        }
        let mut image = Self { table, slots, root: None, boot: None, esp: None, notes };
        image.root = image.find_root();
        let mounts = image.mounts();
        image.esp = image
            .mounted(&mounts, &["/boot/efi", "/efi"])
            .or_else(|| image.position(|slot| slot.has_type(ESP, &[0xef])));
        image.boot = image.find_boot(&mounts);
        Ok(image)
    }

    fn position(&self, is: impl Fn(&Slot<'_>) -> bool) -> Option<usize> {
        self.slots.iter().position(is)
    }

    /// The partition with a root's files; where several have them, the one whose type says so.
    fn find_root(&self) -> Option<usize> {
        let looks = |slot: &Slot<'_>| {
            ["/etc/os-release", "/usr/lib/os-release", "/etc/fstab"].iter().any(|path| slot.has(path))
        };
        let typed = |slot: &Slot<'_>| slot.has_type(ROOT_X86_64, &[]);
        self.position(|slot| typed(slot) && looks(slot))
            .or_else(|| self.position(looks))
            .or_else(|| self.position(typed))
            // One that cannot be read can be root nevertheless.
            .or_else(|| {
                let other = |slot: &Slot<'_>| {
                    matches!(
                        slot.identity.as_ref().map(|found| found.kind),
                        Some(FsKind::Other("xfs" | "btrfs"))
                    )
                };
                self.position(other)
            })
    }

    fn mounts(&mut self) -> Vec<Mount> {
        let volume = self.root.and_then(|root| self.slots[root].volume.as_deref());
        let text = match volume.map(|volume| read_file(volume, "/etc/fstab", TEXT_MAX)) {
            Some(Ok(Some(bytes))) => String::from_utf8_lossy(&bytes).into_owned(),
            Some(Err(error)) => {
                self.notes.push(format!("/etc/fstab cannot be read: {}", chain(&error)));
                String::new()
            }
            _ => String::new(),
        };
        fstab::parse(&text)
    }

    /// The partition that fstab mounts at one of `targets`.
    fn mounted(&mut self, mounts: &[Mount], targets: &[&str]) -> Option<usize> {
        let mount = mounts.iter().find(|mount| targets.contains(&mount.target.as_str()))?;
        let found = self.by_source(&mount.source);
        if found.is_none() {
            self.notes.push(format!(
                "/etc/fstab mounts {} at {}, and there is no such partition",
                mount.source, mount.target
            ));
        }
        found
    }

    /// The partition that a source of fstab, or a `root=` names.
    #[must_use]
    pub fn by_source(&self, source: &str) -> Option<usize> {
        let identity = |slot: &Slot<'_>, get: fn(&Identity) -> &str, value: &str| {
            slot.identity.as_ref().is_some_and(|found| get(found).eq_ignore_ascii_case(value))
        };
        let partition = |slot: &Slot<'_>, get: fn(&Partition) -> &str, value: &str| {
            slot.partition.as_ref().is_some_and(|found| get(found).eq_ignore_ascii_case(value))
        };
        match source.split_once('=') {
            Some(("UUID", id)) => self.position(|slot| identity(slot, |found| &found.uuid, id)),
            Some(("LABEL", label)) => self.position(|slot| identity(slot, |found| &found.label, label)),
            Some(("PARTUUID", id)) => self.position(|slot| partition(slot, |found| &found.uuid, id)),
            Some(("PARTLABEL", name)) => self.position(|slot| partition(slot, |found| &found.name, name)),
            _ => {
                // The first disk of a machine, whatever its driver calls it.
                let device = source.strip_prefix("/dev/")?;
                let letters = ["vda", "sda", "xvda", "nvme0n1p", "mmcblk0p"];
                let number = letters.iter().find_map(|name| device.strip_prefix(name))?;
                if number.is_empty() {
                    return self.position(|slot| slot.partition.is_none());
                }
                let number: u32 = number.parse().ok()?;
                self.position(|slot| slot.partition.as_ref().is_some_and(|found| found.number == number))
            }
        }
    }

    fn find_boot(&mut self, mounts: &[Mount]) -> Option<usize> {
        if let Some(boot) = self.mounted(mounts, &["/boot"]) {
            return Some(boot).filter(|boot| Some(*boot) != self.root);
        }
        let root = self.root;
        let other = |image: &Self, is: &dyn Fn(&Slot<'_>) -> bool| {
            (0..image.slots.len()).find(|at| Some(*at) != root && is(&image.slots[*at]))
        };
        if let Some(boot) = other(self, &|slot| slot.has_type(XBOOTLDR, &[])) {
            return Some(boot);
        }
        // A root that can be read says by fstab where /boot is. Where it cannot, what has kernels.
        let silent = root.is_none_or(|root| self.slots[root].volume.is_none());
        let esp = self.esp;
        let kernels = |slot: &Slot<'_>| {
            let names = slot.volume.as_deref().map(|volume| list(volume, "/"));
            matches!(names, Some(Ok(Some(names))) if names.iter().any(|name| name.starts_with("vmlinuz")))
        };
        if silent { other(self, &kernels).filter(|at| Some(*at) != esp || root.is_none()) } else { None }
    }

    /// The partition that holds what the installed system calls `path`, and its path there.
    #[must_use]
    pub fn locate(&self, path: &str) -> Option<(usize, String)> {
        let under =
            |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        if let (Some(esp), Some(rest)) = (self.esp, under("/boot/efi").or_else(|| under("/efi"))) {
            return Some((esp, rest.to_owned()));
        }
        if let (Some(boot), Some(rest)) = (self.boot, under("/boot")) {
            return Some((boot, rest.to_owned()));
        }
        self.root.map(|root| (root, path.to_owned()))
    }

    /// The file system of a partition.
    pub(crate) fn volume(&self, slot: usize) -> Option<&(dyn Volume + 'a)> {
        self.slots.get(slot)?.volume.as_deref()
    }

    /// A small text file.
    pub(crate) fn text(&self, slot: usize, path: &str) -> Option<String> {
        let bytes = read_file(self.volume(slot)?, path, TEXT_MAX).ok()??;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

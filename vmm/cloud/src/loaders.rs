//! Looks for the configurations of boot loaders, in the order in which they are believed, and
//! makes entries of what they say.

use nelly_disk::fs::{FsError, NodeKind, list, read_file, resolve};

use crate::bls::{self, BlsEntry};
use crate::entry::{BootEntry, FileRef, Loader};
use crate::error::chain;
use crate::grub::{self, Devices, FileKind, Place, SearchBy};
use crate::grubenv::Variables;
use crate::layout::{Image, TEXT_MAX};

use crate::{syslinux, version};

/// Most entries that are kept.
pub(crate) const ENTRIES_MAX: usize = 256;
/// Most initrds of an entry.
pub(crate) const INITRDS_MAX: usize = 32;

/// What was found.
pub(crate) struct Found {
    pub(crate) loader: Loader,
    pub(crate) entries: Vec<BootEntry>,
    pub(crate) chosen: usize,
    pub(crate) looked_for: Vec<String>,
    pub(crate) notes: Vec<String>,
}

/// An entry whose files were not looked for yet.
struct Wanted {
    title: String,
    id: String,
    kernel: (usize, String),
    initrds: Vec<(usize, String)>,
    options: String,
    devicetree: Option<String>,
}

pub(crate) fn find(image: &Image<'_>) -> Found {
    let mut found = Found {
        loader: Loader::Newest,
        entries: Vec::new(),
        chosen: 0,
        looked_for: Vec::new(),
        notes: Vec::new(),
    };
    for step in [of_grub, of_bls, of_syslinux, newest] {
        step(image, &mut found);
        if !found.entries.is_empty() {
            return found;
        }
    }
    found
}

/// The partitions to look at: `/boot`, root, the EFI system partition, all others.
fn order(image: &Image<'_>) -> Vec<usize> {
    let mut order: Vec<usize> = [image.boot, image.root, image.esp].into_iter().flatten().collect();
    order.extend(0..image.slots.len());
    let mut seen = vec![false; image.slots.len()];
    order.retain(|at| image.volume(*at).is_some() && !std::mem::replace(&mut seen[*at], true));
    order
}

impl Found {
    /// Adds entries whose files are there; `chosen` is the place of the wanted one.
    fn take(&mut self, image: &Image<'_>, loader: Loader, source: &str, wanted: Vec<Wanted>, chosen: usize) {
        let mut place = None;
        for (index, wanted) in wanted.into_iter().take(ENTRIES_MAX).enumerate() {
            match entry(image, wanted, source) {
                Ok(entry) => {
                    if index == chosen {
                        place = Some(self.entries.len());
                    }
                    self.entries.push(entry);
                }
                Err(why) if index == chosen => {
                    self.notes.push(format!("the default entry of {source} is not taken: {why}"))
                }
                Err(why) => self.looked_for.push(why),
            }
        }
        self.loader = loader;
        self.chosen = place.unwrap_or(0);
        let count = self.entries.len();
        self.looked_for.push(format!("{source}, with {count} entries that boot a Linux kernel"));
    }
}

/// An entry with its files; an error when one of them is not there.
fn entry(image: &Image<'_>, wanted: Wanted, source: &str) -> Result<BootEntry, String> {
    let title = wanted.title;
    let file = |(slot, path): &(usize, String)| -> Result<FileRef, String> {
        let volume =
            image.volume(*slot).ok_or_else(|| format!("{title:?} names a file system that is not read"))?;
        match resolve(volume, path) {
            Ok(Some(node)) if node.kind == NodeKind::File && node.size > 0 => {
                Ok(FileRef { slot: *slot, path: path.clone(), bytes: node.size })
            }
            Ok(_) => {
                Err(format!("{title:?} names {path}, and no such file is on {}", image.slots[*slot].name()))
            }
            Err(error) => Err(format!("{title:?} names {path}: {}", chain(&error))),
        }
    };
    let kernel = file(&wanted.kernel)?;
    if wanted.initrds.len() > INITRDS_MAX {
        return Err(format!("{title:?} has more than {INITRDS_MAX} initrds"));
    }
    let mut initrds = wanted.initrds.iter().map(file).collect::<Result<Vec<_>, _>>()?;
    // The kernel looks for microcode in the first archive only.
    initrds.sort_by_key(|file| {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        !(name.contains("ucode") || name.contains("microcode"))
    });
    Ok(BootEntry {
        id: wanted.id,
        kernel,
        initrds,
        command_line: wanted.options.split_whitespace().collect::<Vec<_>>().join(" "),
        devicetree: wanted.devicetree,
        source: source.to_owned(),
        title,
    })
}

/// The devices of a GRUB script are the partitions.
struct Disk<'a, 'b>(&'a Image<'b>);

impl Disk<'_, '_> {
    fn device(&self, slot: usize) -> String {
        match &self.0.slots[slot].partition {
            None => "hd0".to_owned(),
            Some(found) if found.kind.to_string().starts_with("0x") => format!("hd0,msdos{}", found.number),
            Some(found) => format!("hd0,gpt{}", found.number),
        }
    }

    /// Devices are called by their partition's number: what stands before it depends on firmware.
    fn slot(&self, device: &str) -> Option<usize> {
        let number =
            device.rsplit_once(',').map(|(_, part)| part.trim_start_matches(|c: char| !c.is_ascii_digit()));
        match number {
            None => self.0.slots.iter().position(|slot| slot.partition.is_none()),
            Some(number) => {
                let number: u32 = number.parse().ok()?;
                self.0
                    .slots
                    .iter()
                    .position(|slot| slot.partition.as_ref().is_some_and(|found| found.number == number))
            }
        }
    }
}

impl Devices for Disk<'_, '_> {
    fn search(&self, by: SearchBy, value: &str) -> Option<String> {
        let slot = match by {
            SearchBy::Uuid => self.0.by_source(&format!("UUID={value}")),
            SearchBy::Label => self.0.by_source(&format!("LABEL={value}")),
            SearchBy::File => {
                order(self.0).into_iter().find(|slot| self.kind(&self.device(*slot), value).is_some())
            }
        };
        slot.map(|slot| self.device(slot))
    }

    fn kind(&self, device: &str, path: &str) -> Option<FileKind> {
        let node = resolve(self.0.volume(self.slot(device)?)?, path).ok()??;
        match node.kind {
            NodeKind::File => Some(FileKind::File(node.size)),
            NodeKind::Directory => Some(FileKind::Directory),
            NodeKind::Link | NodeKind::Other => None,
        }
    }

    fn read(&self, device: &str, path: &str) -> Option<Vec<u8>> {
        read_file(self.0.volume(self.slot(device)?)?, path, TEXT_MAX).ok()?
    }

    fn bls(&self, device: &str) -> Vec<BlsEntry> {
        self.slot(device).map(|slot| bls_entries(self.0, slot, "/loader/entries")).unwrap_or_default()
    }
}

/// Reads `/boot/grub/grub.cfg` and what else distributions call it.
fn of_grub(image: &Image<'_>, found: &mut Found) {
    const PATHS: [&str; 6] = [
        "/boot/grub/grub.cfg",
        "/boot/grub2/grub.cfg",
        "/grub/grub.cfg",
        "/grub2/grub.cfg",
        "/boot/grub/grub.conf",
        "/EFI/BOOT/grub.cfg",
    ];
    let disk = Disk(image);
    for slot in order(image) {
        let mut paths: Vec<String> = PATHS.map(ToOwned::to_owned).to_vec();
        // Stubs on the EFI system partition lead to the others.
        let vendors = image.volume(slot).map(|volume| list(volume, "/EFI"));
        if let Some(Ok(Some(names))) = vendors {
            paths.extend(names.iter().take(64).map(|name| format!("/EFI/{name}/grub.cfg")));
        }
        for path in paths {
            let source = format!("{path} on {}", image.slots[slot].name());
            match image.volume(slot).map(|volume| read_file(volume, &path, TEXT_MAX)) {
                Some(Ok(Some(_))) => {}
                Some(Err(error @ (FsError::TooLarge { .. } | FsError::Corrupt(_)))) => {
                    found.looked_for.push(format!("{source}: {}", chain(&error)));
                    continue;
                }
                _ => continue,
            }
            match grub::evaluate(&disk, &disk.device(slot), &path) {
                Ok(menu) => grub_menu(image, &disk, found, &source, menu),
                Err(error) => found.looked_for.push(format!("{source}, which is no sound script: {error}")),
            }
            if !found.entries.is_empty() {
                return;
            }
        }
    }
    if found.looked_for.is_empty() {
        found.looked_for.push(format!("no GRUB configuration ({}, EFI/*/grub.cfg)", PATHS[..4].join(", ")));
    }
}

fn grub_menu(image: &Image<'_>, disk: &Disk<'_, '_>, found: &mut Found, source: &str, menu: grub::Menu) {
    let place = |place: &Place| disk.slot(&place.device).map(|slot| (slot, place.path.clone()));
    let (mut wanted, mut chosen) = (Vec::new(), 0);
    for (index, entry) in menu.entries.into_iter().enumerate() {
        let Some(kernel) = entry.linux.as_ref() else {
            if Some(index) == menu.chosen {
                found
                    .notes
                    .push(format!("the default entry of {source}, {:?}, boots no Linux kernel", entry.title));
            }
            continue;
        };
        let initrds: Option<Vec<_>> = entry.initrds.iter().map(place).collect();
        let (Some(kernel), Some(initrds)) = (place(kernel), initrds) else {
            let why = entry
                .missing
                .first()
                .cloned()
                .unwrap_or_else(|| format!("there is no device {}", kernel.device));
            found.looked_for.push(format!("{:?} of {source}: {why}", entry.title));
            continue;
        };
        if Some(index) == menu.chosen {
            chosen = wanted.len();
        }
        let devicetree = entry.devicetree.map(|place| place.path);
        wanted.push(Wanted {
            title: entry.title,
            id: entry.id,
            kernel,
            initrds,
            options: entry.options,
            devicetree,
        });
    }
    for unknown in menu.unknown {
        found.notes.push(format!("{source}: not evaluated: {unknown}"));
    }
    found.take(image, if menu.bls { Loader::Bls } else { Loader::Grub }, source, wanted, chosen);
}

fn bls_entries(image: &Image<'_>, slot: usize, directory: &str) -> Vec<BlsEntry> {
    let names = image.volume(slot).map(|volume| list(volume, directory));
    let Some(Ok(Some(names))) = names else { return Vec::new() };
    let files = names.into_iter().filter(|name| name.ends_with(".conf")).take(ENTRIES_MAX);
    let parsed =
        files.filter_map(|name| bls::parse(&name, &image.text(slot, &format!("{directory}/{name}"))?));
    let mut entries: Vec<_> = parsed.collect();
    bls::sort(&mut entries);
    entries
}

/// Entries that no GRUB reads: systemd-boot's.
fn of_bls(image: &Image<'_>, found: &mut Found) {
    for slot in order(image) {
        for directory in ["/loader/entries", "/boot/loader/entries"] {
            let entries = bls_entries(image, slot, directory);
            if entries.is_empty() {
                continue;
            }
            let source = format!("{directory} on {}", image.slots[slot].name());
            let config = image.text(slot, &directory.replace("entries", "loader.conf")).unwrap_or_default();
            let default = config
                .lines()
                .find_map(|line| line.trim().strip_prefix("default"))
                .unwrap_or_default()
                .trim();
            let is_default = |entry: &BlsEntry| {
                bls::matches(default, &entry.id) || bls::matches(default, &format!("{}.conf", entry.id))
            };
            let chosen = entries.iter().position(is_default).unwrap_or(0);
            let none = Variables::new();
            let wanted = entries.into_iter().map(|entry| {
                let entry = entry.expanded(&none);
                let place = |path: &String| (slot, path.clone());
                Wanted {
                    kernel: place(&entry.linux),
                    initrds: entry.initrds.iter().map(place).collect(),
                    options: entry.options.unwrap_or_default(),
                    devicetree: entry.devicetree,
                    title: entry.title,
                    id: entry.id,
                }
            });
            found.take(image, Loader::Bls, &source, wanted.collect(), chosen);
            if !found.entries.is_empty() {
                return;
            }
        }
        let unified = image.volume(slot).map(|volume| list(volume, "/EFI/Linux"));
        if let Some(Ok(Some(names))) = unified
            && let Some(name) = names.iter().find(|name| name.ends_with(".efi"))
        {
            found
                .looked_for
                .push(format!("/EFI/Linux/{name}, a unified kernel image, which is not supported"));
        }
    }
    found.looked_for.push("no entries in loader/entries".to_owned());
}

fn of_syslinux(image: &Image<'_>, found: &mut Found) {
    const PATHS: [&str; 9] = [
        "/boot/extlinux.conf",
        "/boot/extlinux/extlinux.conf",
        "/extlinux.conf",
        "/extlinux/extlinux.conf",
        "/boot/syslinux/syslinux.cfg",
        "/syslinux/syslinux.cfg",
        "/boot/syslinux.cfg",
        "/syslinux.cfg",
        "/boot/syslinux/extlinux.conf",
    ];
    for slot in order(image) {
        for path in PATHS {
            let Some(text) = image.text(slot, path) else { continue };
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            let absolute = |file: &str| {
                if file.starts_with('/') { file.to_owned() } else { format!("{directory}/{file}") }
            };
            let mut config = syslinux::parse(&text);
            for include in std::mem::take(&mut config.includes).iter().take(16) {
                let more = image.text(slot, &absolute(include)).map(|text| syslinux::parse(&text));
                if let Some(more) = more {
                    config.labels.extend(more.labels);
                    config.default = config.default.or(more.default);
                }
            }
            let chosen = config.chosen();
            let source = format!("{path} on {}", image.slots[slot].name());
            let wanted = config.labels.into_iter().map(|label| Wanted {
                title: if label.title.is_empty() { label.name.clone() } else { label.title },
                id: label.name,
                kernel: (slot, absolute(&label.kernel)),
                initrds: label.initrds.iter().map(|file| (slot, absolute(file))).collect(),
                options: label.options,
                devicetree: None,
            });
            found.take(image, Loader::Syslinux, &source, wanted.collect(), chosen);
            if !found.entries.is_empty() {
                return;
            }
        }
    }
    found.looked_for.push("no extlinux.conf or syslinux.cfg".to_owned());
}

/// The kernels in `/boot`, the newest first, each with the initrd that is called like it.
fn newest(image: &Image<'_>, found: &mut Found) {
    let Some((slot, directory)) = image.locate("/boot") else {
        found.looked_for.push("no root file system".to_owned());
        return;
    };
    let Some(volume) = image.volume(slot) else {
        found.looked_for.push(format!("/boot is on {}, which is not read", image.slots[slot].name()));
        return;
    };
    let names = match list(volume, &directory) {
        Ok(names) => names.unwrap_or_default(),
        Err(error) => {
            found.looked_for.push(format!("/boot cannot be read: {}", chain(&error)));
            return;
        }
    };
    let mut kernels: Vec<(String, String)> = names
        .iter()
        .filter_map(|name| {
            let rest = name.strip_prefix("vmlinuz").or_else(|| name.strip_prefix("vmlinux"))?;
            Some((name.clone(), rest.trim_start_matches('-').to_owned()))
        })
        .collect();
    let rescue = |release: &str| release.contains("rescue");
    kernels.sort_by(|(_, a), (_, b)| rescue(a).cmp(&rescue(b)).then_with(|| version::compare(b, a)));
    let root = image.root.map(|root| &image.slots[root]);
    let of_root = root.map(|slot| {
        let uuid = slot.identity.as_ref().map(|found| found.uuid.as_str()).filter(|uuid| !uuid.is_empty());
        match (uuid, &slot.partition) {
            (Some(uuid), _) => format!("root=UUID={uuid} ro"),
            (None, Some(partition)) => format!("root=PARTUUID={} ro", partition.uuid),
            (None, None) => "root=/dev/vda ro".to_owned(),
        }
    });
    // Each looks for its initrd among all names: not for more kernels than there are entries.
    let wanted = kernels.into_iter().take(ENTRIES_MAX).map(|(name, release)| {
        let called = [
            format!("initrd.img-{release}"),
            format!("initramfs-{release}.img"),
            format!("initrd-{release}"),
            format!("initramfs-{release}"),
            format!("initrd-{release}.img"),
            format!("initrd.img{release}"),
        ];
        let initrd = called.into_iter().find(|name| names.contains(name));
        let at = |name: &str| (slot, format!("{directory}/{name}"));
        Wanted {
            title: name.clone(),
            id: name.clone(),
            kernel: at(&name),
            initrds: initrd.iter().map(|name| at(name)).collect(),
            options: of_root.clone().unwrap_or_default(),
            devicetree: None,
        }
    });
    let source = format!("vmlinuz-* in {}/ on {}", directory.trim_end_matches('/'), image.slots[slot].name());
    found.take(image, Loader::Newest, &source, wanted.collect(), 0);
    if !found.entries.is_empty() {
        found
            .notes
            .push("no boot loader's configuration was found; root= and the initrd were guessed".to_owned());
    }
}

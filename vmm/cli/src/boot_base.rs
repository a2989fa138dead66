//! The image below the disk that a machine of `nelly boot -d` keeps. The disk has only the blocks
//! that the guest wrote: over other bytes than those it was made over it is damage.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;
use nelly_sandbox::state::{BaseFile, BootRecord};

use crate::boot_disk::DiskFlag;
use crate::fail::Hint;

/// The disk that a record boots from, kept in `disk` unless its flag says otherwise.
pub(crate) fn image(boot: &BootRecord, disk: &Path) -> Result<Option<DiskFlag>> {
    let image = boot.image.as_deref().map(DiskFlag::image).transpose()?;
    Ok(image.map(|image| image.kept_in(disk)))
}

/// What the machine's own disk lies over, or will, once it is made at `disk`; nothing if this
/// record asks for no such disk.
///
/// # Errors
/// The image or a backing file cannot be used.
pub(crate) fn of(boot: &BootRecord, disk: &Path) -> Result<Vec<BaseFile>> {
    match image(boot, disk)? {
        Some(image) if image.kept() == Some(disk) => image.base(),
        _ => Ok(Vec::new()),
    }
}

/// What a machine's record, which shall become `new`, says of what the disk at `disk` lies over.
///
/// # Errors
/// There is a disk, and the new record has another image, or writes into this one, or its bytes are
/// others.
pub(crate) fn carried(name: &str, old: &BootRecord, new: &BootRecord, disk: &Path) -> Result<Vec<BaseFile>> {
    if std::fs::symlink_metadata(disk).is_err() {
        return of(new, disk);
    }
    same_image(name, old, new, disk)?;
    let now = of(new, disk)?;
    unchanged(name, &old.base, &now)?;
    // The older word counts: it is of the time when the disk was made.
    Ok(if old.base.is_empty() { now } else { old.base.clone() })
}

/// Whether a machine can be started as its record is.
///
/// # Errors
/// Its disk is gone, or what it lies over is not there or has changed.
pub(crate) fn check(name: &str, boot: &BootRecord, disk: &Path) -> Result<()> {
    let Some(image) = image(boot, disk)?.filter(|image| image.kept() == Some(disk)) else { return Ok(()) };
    if let Err(error) = std::fs::symlink_metadata(disk) {
        return Err(Hint::error(
            format!("cannot use the disk {} of machine {name}: {error}", disk.display()),
            "`nelly boot -d` with the same name, image and flags makes a new one",
        ));
    }
    unchanged(name, &boot.base, &image.base()?)
}

/// The disk of a machine belongs to one image, by whatever path.
fn same_image(name: &str, old: &BootRecord, new: &BootRecord, disk: &Path) -> Result<()> {
    let Some(old) = image(old, disk)? else { return Ok(()) };
    let new = image(new, disk)?;
    let path = old.path();
    let afresh = format!("use another name, or remove the machine and its disk with `nelly rm {name}`");
    if let Some(new) = &new {
        if new.kept() == Some(new.path()) {
            let message = format!(
                "machine {name} has a disk over {}, which has to stay as it is: its guest cannot write into it",
                new.path().display()
            );
            return Err(Hint::error(message, afresh));
        }
        if new.path() == path {
            return Ok(());
        }
    }
    let Ok(there) = path.metadata() else {
        return Err(Hint::error(
            format!(
                "the disk of machine {name} belongs to the image {}, which is not there any more",
                path.display()
            ),
            format!("move the image back to {}", path.display()),
        ));
    };
    let same = new.and_then(|new| new.path().metadata().ok());
    if same.is_some_and(|new| (new.dev(), new.ino()) == (there.dev(), there.ino())) {
        return Ok(());
    }
    Err(Hint::error(
        format!("machine {name} boots from {}, which its disk belongs to", path.display()),
        afresh,
    ))
}

/// Refuses files that are not those which the disk was made over.
fn unchanged(name: &str, then: &[BaseFile], now: &[BaseFile]) -> Result<()> {
    if then.is_empty() || now.is_empty() {
        return Ok(());
    }
    let differs = |(then, now): (&BaseFile, &BaseFile)| {
        then.difference(now).map(|what| format!("{} has changed: {what}", now.path.display()))
    };
    let count = then.len() != now.len();
    let other = || count.then(|| format!("{} has other backing files", now[0].path.display()));
    let Some(what) = then.iter().zip(now).find_map(differs).or_else(other) else { return Ok(()) };
    Err(Hint::error(
        format!(
            "the disk of machine {name} would be damaged: {what}; the disk's blocks belong to the old bytes"
        ),
        format!(
            "put the old file back, with its old time, or remove the machine and its disk with `nelly rm {name}` and start afresh"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    use super::*;

    struct Place {
        top: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            fs::write(top.path().join("a.img"), [1; 4096]).unwrap();
            Self { top }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.top.path().join(name)
        }

        fn record(&self, value: &str) -> BootRecord {
            let image = Some(self.path(value).to_str().unwrap().to_owned());
            BootRecord { image, ..BootRecord::default() }
        }

        /// A machine of this image, whose disk is made.
        fn made(&self, value: &str) -> BootRecord {
            let disk = self.path("disk.qcow2");
            let record = self.record(value);
            let base = of(&record, &disk).unwrap();
            let mut files = Vec::new();
            image(&record, &disk).unwrap().unwrap().config(0, false, &mut files).unwrap();
            assert!(disk.exists());
            BootRecord { base, ..record }
        }

        fn carried(&self, old: &BootRecord, new: &str) -> Result<Vec<BaseFile>, (String, String)> {
            let carried = carried("web", old, &self.record(new), &self.path("disk.qcow2"));
            carried.map_err(said)
        }

        fn checked(&self, boot: &BootRecord) -> Result<(), (String, String)> {
            check("web", boot, &self.path("disk.qcow2")).map_err(said)
        }
    }

    /// The sentence of an error, and its hint.
    fn said(error: anyhow::Error) -> (String, String) {
        let debug = format!("{:?}", error.downcast_ref::<Hint>());
        (format!("{error:#}"), debug)
    }

    fn aged(path: &Path, seconds: u64) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn a_disk_is_not_started_over_other_bytes() {
        let place = Place::new();
        let made = place.made("a.img");
        assert_eq!(made.base.len(), 1);
        assert_eq!(place.checked(&made), Ok(()));
        assert_eq!(place.carried(&made, "a.img,size=1G").unwrap(), made.base);
        // Written in place, at another time; then with another size.
        aged(&place.path("a.img"), 1);
        for error in [place.checked(&made).unwrap_err(), place.carried(&made, "a.img").unwrap_err()] {
            assert!(error.0.contains("a.img has changed: it was written since"), "{error:?}");
            assert!(
                error.0.contains("belong to the old bytes") && error.1.contains("nelly rm web"),
                "{error:?}"
            );
        }
        fs::write(place.path("a.img"), [2; 8192]).unwrap();
        let error = place.checked(&made).unwrap_err();
        assert!(error.0.contains("8192 bytes now, and had 4096"), "{error:?}");
        // A copy that kept the time is the file again, whatever its number.
        let copy = place.path("copy");
        fs::write(&copy, [1; 4096]).unwrap();
        let then = &made.base[0];
        let since = Duration::new(then.modified_s.cast_unsigned(), u32::try_from(then.modified_ns).unwrap());
        File::options()
            .write(true)
            .open(&copy)
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH + since)
            .unwrap();
        fs::rename(&copy, place.path("a.img")).unwrap();
        assert_eq!(place.checked(&made), Ok(()));
    }

    #[test]
    fn the_files_below_an_image_count_too() {
        let place = Place::new();
        let above = place.path("b.qcow2");
        let flag = format!("{},overlay={}", place.path("a.img").display(), above.display());
        DiskFlag::image(&flag).unwrap().config(0, false, &mut Vec::new()).unwrap();
        let made = place.made("b.qcow2");
        assert_eq!(made.base.len(), 2);
        assert_eq!(place.checked(&made), Ok(()));
        aged(&place.path("a.img"), 1);
        let error = place.checked(&made).unwrap_err();
        assert!(error.0.contains("a.img has changed"), "{error:?}");
    }

    #[test]
    fn another_path_of_the_image_is_no_other_image() {
        let place = Place::new();
        let made = place.made("a.img");
        std::os::unix::fs::symlink("a.img", place.path("link.img")).unwrap();
        assert_eq!(place.carried(&made, "link.img").unwrap(), made.base);
        fs::copy(place.path("a.img"), place.path("other.img")).unwrap();
        let error = place.carried(&made, "other.img").unwrap_err();
        assert!(error.0.contains("a.img") && error.1.contains("use another name"), "{error:?}");
        let none = carried("web", &made, &BootRecord::default(), &place.path("disk.qcow2"));
        assert!(none.is_err());
        let error = place.carried(&made, "a.img,rw").unwrap_err();
        assert!(error.0.contains("has to stay as it is"), "{error:?}");
        // What boots without the disk leaves the word of it as it is.
        assert_eq!(place.carried(&made, "a.img,ephemeral").unwrap(), made.base);
        fs::rename(place.path("a.img"), place.path("moved.img")).unwrap();
        let error = place.carried(&made, "moved.img").unwrap_err();
        assert!(
            error.0.contains("not there any more") && error.1.contains("move the image back"),
            "{error:?}"
        );
        assert!(!error.1.contains("nelly rm"), "{error:?}");
    }

    #[test]
    fn a_machine_whose_disk_is_gone_gets_one_by_boot_only() {
        let place = Place::new();
        let made = place.made("a.img");
        fs::remove_file(place.path("disk.qcow2")).unwrap();
        let error = place.checked(&made).unwrap_err();
        assert!(error.0.contains("disk.qcow2") && error.1.contains("nelly boot -d"), "{error:?}");
        fs::write(place.path("other.img"), [3; 512]).unwrap();
        let base = place.carried(&made, "other.img").unwrap();
        assert_eq!((base.len(), base[0].bytes), (1, 512));
        // One that needs no disk of its own has none to miss.
        assert_eq!(place.checked(&place.record("a.img,rw")), Ok(()));
    }
}

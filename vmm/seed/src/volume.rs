//! The disk: a FAT file system with a few files in its root.

use std::io::{Cursor, Write as _};

use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider, format_volume};

use crate::error::SeedError;

/// The label that makes a disk a seed, in small letters: old versions of cloud-init look for
/// `cidata` alone, newer ones also for `CIDATA` (`dscheck_NoCloud` of ds-identify), and cirros
/// compares letter by letter. It is in the root directory as well as in the boot sector: the latter
/// alone is `LABEL_FATBOOT` to blkid since util-linux 2.33, and no label to cloud-init
/// (canonical/cloud-init#3437).
const LABEL: [u8; 11] = *b"cidata     ";
/// The volume's serial number, always the same: blkid shows it as UUID.
const SERIAL: u32 = 0xc1da_7a00;
/// Bytes of the smallest volume.
const VOLUME_MIN: u64 = 256 << 10;
/// What a volume's size is a multiple of, so that its last page and last sector are whole.
const STEP: u64 = 64 << 10;
/// Bytes of all files together at most.
pub(crate) const FILES_MAX: u64 = 64 << 20;

/// The time that all files have, the first that FAT knows: those of two seeds do not differ by it.
#[derive(Debug)]
struct Always;

impl TimeProvider for Always {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// The bytes of a volume with these files in its root, the same ones for the same files.
///
/// # Errors
/// There are more than 64 MiB of files.
pub(crate) fn volume(files: &[(&str, &[u8])]) -> Result<Vec<u8>, SeedError> {
    let bytes: u64 = files.iter().map(|(_, contents)| contents.len() as u64).sum();
    if bytes > FILES_MAX {
        return Err(SeedError::TooLarge { bytes, most: FILES_MAX });
    }
    // Beside the files: boot sector, two tables, the root directory, and ends of clusters.
    let size = (bytes + bytes / 8 + VOLUME_MIN).next_multiple_of(STEP);
    let size = usize::try_from(size).expect("FILES_MAX fits");
    let mut disk = vec![0; size];
    fill(&mut disk, files).map_err(|error| SeedError::FileSystem(error.to_string()))?;
    Ok(disk)
}

fn fill(disk: &mut [u8], files: &[(&str, &[u8])]) -> std::io::Result<()> {
    let options = FormatVolumeOptions::new().volume_id(SERIAL).volume_label(LABEL);
    format_volume(Cursor::new(&mut *disk), options)?;
    let volume = FileSystem::new(Cursor::new(&mut *disk), FsOptions::new().time_provider(&Always))?;
    for (name, contents) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(contents)?;
        file.flush()?;
    }
    volume.unmount()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use nelly_disk::FileReader;
    use nelly_disk::fs::{self, fat::Fat};
    use proptest::prelude::*;

    use super::*;

    fn judged(program: &str, words: &[&str], path: &Path) -> String {
        let path_of = std::env::var("PATH").unwrap_or_else(|_| String::new()) + ":/usr/sbin:/sbin";
        let said = Command::new(program).args(words).arg(path).env("PATH", path_of).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.success(), "{program}: {text}{}", String::from_utf8_lossy(&said.stderr));
        text
    }

    /// What our own reader of FAT, which fatfs has no part in, finds.
    fn read_back(path: &Path) -> Vec<(String, Vec<u8>)> {
        let disk = FileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let volume = Fat::open(&disk).unwrap();
        assert_eq!((volume.label().unwrap(), volume.serial()), ("cidata".to_owned(), SERIAL));
        let mut names = Vec::new();
        fs::Volume::entries(&volume, fs::Volume::root(&volume).unwrap(), &mut |name, entry| {
            names.push((name.to_owned(), entry));
            true
        })
        .unwrap();
        let contents = |(name, entry)| {
            let node = fs::Volume::node(&volume, entry).unwrap();
            let mut bytes = vec![0; usize::try_from(node.size).unwrap()];
            let mut done = 0;
            while done < bytes.len() {
                let count = fs::Volume::read(&volume, node, &mut bytes[done..], done as u64).unwrap();
                assert_ne!(count, 0);
                done += count;
            }
            (name, bytes)
        };
        names.into_iter().map(contents).collect()
    }

    #[test]
    fn judges_find_the_label_and_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed.img");
        // Sizes around those at which clusters grow and FAT12 becomes FAT16.
        for kib in [0, 1, 100, 1000, 3300, 3400, 3600, 7400, 14_000, 30_000] {
            let large: Vec<u8> = (0..=250).cycle().take(kib * 1024).collect();
            let files: [(&str, &[u8]); 3] =
                [("user-data", &large), ("meta-data", b"{}\n"), ("network-config", b"version: 2\n")];
            std::fs::write(&path, volume(&files).unwrap()).unwrap();
            judged("fsck.vfat", &["-n", "-V"], &path);
            let blkid = judged("blkid", &["-p", "-o", "export"], &path);
            assert!(blkid.lines().any(|line| line == "LABEL=cidata"), "{kib} KiB: {blkid}");
            assert!(blkid.lines().any(|line| line == "TYPE=vfat"), "{kib} KiB: {blkid}");
            let found = read_back(&path);
            let expected: Vec<_> =
                files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
            assert!(found == expected, "{kib} KiB");
        }
        let typed = Command::new("mtype").arg("-i").arg(&path).arg("::meta-data").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&typed.stdout), "{}\n");
    }

    #[test]
    fn more_than_a_seed_holds_is_refused() {
        let large = vec![0; usize::try_from(FILES_MAX).unwrap()];
        let error = volume(&[("user-data", &large), ("meta-data", b"x")]).unwrap_err();
        assert_eq!(error, SeedError::TooLarge { bytes: FILES_MAX + 1, most: FILES_MAX });
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_put_in_is_read_back(
            contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9000), 4),
        ) {
            let names = ["user-data", "meta-data", "network-config", "vendor-data"];
            let files: Vec<(&str, &[u8])> =
                names.iter().zip(&contents).map(|(name, bytes)| (*name, &**bytes)).collect();
            let image = volume(&files).unwrap();
            prop_assert!(image == volume(&files).unwrap());
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("seed.img");
            std::fs::write(&path, image).unwrap();
            let expected: Vec<_> =
                files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
            prop_assert_eq!(read_back(&path), expected);
        }
    }
}

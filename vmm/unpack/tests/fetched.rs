//! Files that `nelly_fetch` has this program unpack.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nelly_fetch::{
    DiskCache, DiskFormat, FetchError, Fetcher, Packing, Source, Stage, Unwatched, Wanted, Watch,
    archive_packing,
};
use nelly_image::{Digest, Unpacker};
use nelly_registry::{Cancel, Client, RegistryOptions};

struct Place(tempfile::TempDir, Client, Unpacker);

impl Place {
    fn new() -> Self {
        let client = Client::new(RegistryOptions::default(), Cancel::new());
        let unpacker = Unpacker::at(vec![env!("CARGO_BIN_EXE_nelly-unpack").into()]);
        Self(tempfile::tempdir().unwrap(), client, unpacker)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a command in the place.
    fn make(&self, command: &str) {
        let done = Command::new("sh").arg("-c").arg(command).current_dir(&self.0).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn save(&self, wanted: &Wanted<'_>, watch: &mut dyn Watch) -> Result<PathBuf, FetchError> {
        let fetcher = Fetcher { client: &self.1, unpacker: &self.2 };
        fetcher.save(wanted, &self.path("out"), watch).map(|saved| saved.path)
    }

    fn names(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }
}

fn wanted(source: &Source) -> Wanted<'_> {
    Wanted {
        source,
        credentials: None,
        checksum: None,
        packing: None,
        member: None,
        most: 1 << 30,
        disk: true,
    }
}

fn source(path: &Path) -> Source {
    Source::File(path.to_owned())
}

/// Remembers the stages, and how far the unpacker was.
#[derive(Default)]
struct Seen(Vec<Stage>);

impl Watch for Seen {
    fn at(&mut self, stage: Stage, done: u64, total: Option<u64>) {
        assert!(total.is_none_or(|total| done <= total));
        if self.0.last() != Some(&stage) {
            self.0.push(stage);
        }
    }
}

#[test]
fn packed_disks_are_unpacked_by_their_names_or_as_somebody_says() {
    let place = Place::new();
    place.make("yes disk | head -c 3M >disk.raw; for tool in gzip xz zstd bzip2; do $tool -qkc disk.raw >disk.$tool; done");
    place.make("mv disk.gzip disk.raw.gz; mv disk.xz disk.raw.xz; mv disk.zstd disk.raw.zst; mv disk.bzip2 disk.raw.bz2; cp disk.raw.xz plain");
    let disk = fs::read(place.path("disk.raw")).unwrap();
    for name in ["disk.raw.gz", "disk.raw.xz", "disk.raw.zst", "disk.raw.bz2"] {
        let (from, mut seen) = (source(&place.path(name)), Seen::default());
        let out = place.save(&wanted(&from), &mut seen).unwrap();
        assert!(fs::read(&out).unwrap() == disk, "{name}");
        assert_eq!(seen.0[0], Stage::Verify, "{name}");
        fs::remove_file(out).unwrap();
    }
    let plain = source(&place.path("plain"));
    let out = place.save(&Wanted { packing: Some(Packing::Xz), ..wanted(&plain) }, &mut Unwatched).unwrap();
    assert!(fs::read(&out).unwrap() == disk);
    // In the cache, too, with the checksum of what came.
    let cache = DiskCache::at(place.path("disks"));
    let fetcher = Fetcher { client: &place.1, unpacker: &place.2 };
    let sum = Digest::sha256(&fs::read(place.path("disk.raw.zst")).unwrap());
    let from = source(&place.path("disk.raw.zst"));
    let checked = Wanted { checksum: Some(&sum), ..wanted(&from) };
    let there = cache.pull(&fetcher, &checked, None, &mut Unwatched).unwrap();
    assert_eq!((there.sha256, there.format, there.bytes), (sum, DiskFormat::Raw, disk.len() as u64));
    assert!(fs::read(&there.path).unwrap() == disk);
}

#[test]
fn what_cannot_be_unpacked_leaves_nothing() {
    let place = Place::new();
    place.make("head -c 50M /dev/zero | gzip -1 >bomb.raw.gz; head -c 1000 bomb.raw.gz >cut.raw.gz; echo no >no.raw.xz");
    let before = place.names();
    for (name, needle) in [
        ("bomb.raw.gz", "more than the 1000000 bytes that are allowed come out of it"),
        ("cut.raw.gz", "cannot be unpacked"),
        ("no.raw.xz", "cannot be unpacked"),
    ] {
        let from = source(&place.path(name));
        let error = place.save(&Wanted { most: 1_000_000, ..wanted(&from) }, &mut Unwatched).unwrap_err();
        assert!(error.code() == "unpack_failed" && error.to_string().contains(needle), "{error}");
        assert_eq!(place.names(), before, "{name}");
    }
}

#[test]
fn files_of_an_archive_are_taken_by_their_names() {
    let place = Place::new();
    place.make(
        "mkdir final; echo kernel >final/Image; echo initrd >final/initrd; \
         python3 -c 'import zipfile; z=zipfile.ZipFile(\"a.zip\",\"w\",zipfile.ZIP_DEFLATED); z.write(\"final/Image\"); z.write(\"final/initrd\")'",
    );
    let from = source(&place.path("a.zip"));
    let take = |member| place.save(&Wanted { member, disk: false, ..wanted(&from) }, &mut Unwatched);
    let out = take(Some("final/Image")).unwrap();
    assert_eq!(fs::read(&out).unwrap(), b"kernel\n");
    fs::remove_file(out).unwrap();
    let error = take(Some("final/disk")).unwrap_err();
    assert!(
        matches!(error, FetchError::NoMember { .. }) && error.to_string().contains("it has \"final/"),
        "{error}"
    );
    assert_eq!(take(None).unwrap_err().code(), "unpack_failed");
    assert!(!place.path("out").exists());
}

#[test]
fn disks_and_files_of_tar_archives_are_taken() {
    let place = Place::new();
    place.make(
        "mkdir final; echo kernel >final/Image; yes disk | head -c 1M >disk.raw; tar -czf a.tar.gz ./final; \
         tar -cf - disk.raw | xz >debian.tar.xz; mv a.tar.gz b.gz; tar -cf plain final; echo no >no; cp plain no.zip; cp no no.tgz",
    );
    let disk = fs::read(place.path("disk.raw")).unwrap();
    let from = source(&place.path("debian.tar.xz"));
    let out = place.save(&wanted(&from), &mut Unwatched).unwrap();
    assert!(fs::read(&out).unwrap() == disk);
    fs::remove_file(out).unwrap();
    // Of something packed a file is only in a tar archive, so its name need not say so.
    let from = source(&place.path("b.gz"));
    let named = Wanted { member: Some("final/Image"), disk: false, ..wanted(&from) };
    let out = place.save(&named, &mut Unwatched).unwrap();
    assert_eq!(fs::read(&out).unwrap(), b"kernel\n");
    fs::remove_file(out).unwrap();
    let error = place.save(&Wanted { packing: Some(Packing::None), ..named }, &mut Unwatched).unwrap_err();
    assert!(error.to_string().contains("no archive"), "{error}");
    // Bytes first, and then the name.
    for (name, packing) in [
        ("b.gz", Some(Packing::TarGzip)),
        ("plain", Some(Packing::Tar)),
        ("no.zip", Some(Packing::Tar)),
        ("no.tgz", Some(Packing::TarGzip)),
        ("no", None),
    ] {
        assert_eq!(archive_packing(&place.path(name)).unwrap(), packing, "{name}");
    }
    assert!(archive_packing(&place.path("final")).is_err());
}

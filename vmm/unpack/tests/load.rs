//! Archives that a local store has this program read: what is loaded is what is loaded without it,
//! and so are the errors; and what is left when it is killed.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../image/tests/image/support/mod.rs"]
#[allow(dead_code, reason = "for the tests of another crate too")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nelly_image::{
    ArchiveFormat, ImageStage, Input, Limits, LocalStore, Progress, Silent, StoredImage, TransferError,
    Unpacker,
};
use rustix::process::{Pid, Signal, kill_process};
use support::hostile::archives;
use support::image::{Layout, Pack, TestDir, chain, gzip};
use support::tarball::{Tar, file};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nelly-unpack");

fn unpacker() -> Unpacker {
    Unpacker::at(vec![PROGRAM.into()])
}

type Loaded = Result<Vec<StoredImage>, TransferError>;

fn load(place: &TestDir, input: Input<'_>, unpacker: Option<&Unpacker>) -> Loaded {
    let local = LocalStore::open(place.local()).unwrap();
    local.load(input, None, &place.limits, unpacker, &mut Silent)
}

/// All files of the store, and what is in them.
fn stored(place: &TestDir) -> BTreeMap<PathBuf, Vec<u8>> {
    fn below(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, found);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    below(&place.local(), &mut found);
    let top = place.local();
    found.into_iter().map(|(path, bytes)| (path.strip_prefix(&top).unwrap().to_owned(), bytes)).collect()
}

/// Blobs, whole or not, and names.
fn is_empty(place: &TestDir) -> bool {
    let blobs = stored(place).keys().any(|path| path.starts_with("blobs") || path.starts_with("partial"));
    !blobs && LocalStore::open(place.local()).unwrap().list().unwrap().is_empty()
}

/// Two images, of which one has two names.
fn saved(format: ArchiveFormat) -> Vec<u8> {
    let source = TestDir::default();
    let layer = |text: &str| Tar::default().add(file("name"), text.as_bytes()).end();
    for name in ["one", "two"] {
        let layers = [(layer("below"), Pack::Gzip), (layer(name), Pack::Zstd), (layer(name), Pack::Plain)];
        let layout = Layout::with(&source.path(name), &layers, r#"{"Cmd":["/bin/sh"]}"#);
        source.add(&layout, &format!("app:{name}"));
        source.add(&layout, &format!("other/{name}:1"));
    }
    let local = LocalStore::open(source.local()).unwrap();
    let mut out = Vec::new();
    local.save(&local.list().unwrap(), format, &mut out, &Limits::default(), &mut Silent).unwrap();
    out
}

#[test]
fn what_is_loaded_is_what_is_loaded_without() {
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let plain = saved(format);
        for bytes in [plain.clone(), gzip(&plain), zstd::encode_all(&plain[..], 1).unwrap()] {
            let without = TestDir::default();
            let expected = load(&without, Input::Stream(&mut &bytes[..]), None).unwrap();
            assert_eq!(expected.len(), 4);
            let (of_file, of_pipe) = (TestDir::default(), TestDir::default());
            let path = of_file.path("archive");
            fs::write(&path, &bytes).unwrap();
            let unpacker = unpacker();
            assert_eq!(load(&of_file, Input::File(&path), Some(&unpacker)).unwrap(), expected);
            assert_eq!(load(&of_pipe, Input::Stream(&mut &bytes[..]), Some(&unpacker)).unwrap(), expected);
            for place in [&of_file, &of_pipe] {
                assert!(stored(place) == stored(&without), "{:?}", stored(place).keys());
            }
            // Again, when all of it is there.
            assert_eq!(load(&of_pipe, Input::Stream(&mut &bytes[..]), Some(&unpacker)).unwrap(), expected);
            assert!(stored(&of_pipe) == stored(&without));
        }
    }
}

#[test]
fn hostile_and_damaged_archives_leave_nothing_and_are_refused_as_without() {
    let place = TestDir::default();
    let path = place.path("archive");
    for (bytes, what) in archives() {
        fs::write(&path, &bytes).unwrap();
        for from_file in [false, true] {
            let load = |unpacker: Option<&Unpacker>| {
                let mut stream = &bytes[..];
                let input = if from_file { Input::File(&path) } else { Input::Stream(&mut stream) };
                load(&place, input, unpacker).unwrap_err()
            };
            let (without, with) = (load(None), load(Some(&unpacker())));
            assert_eq!((chain(&with), with.code()), (chain(&without), without.code()), "{what}");
            assert!(from_file || chain(&with).contains(what), "{what}: {}", chain(&with));
            assert!(is_empty(&place), "{what}: {:?}", stored(&place).keys());
        }
    }
}

/// The program, behind a shell that writes down which process it becomes.
fn written_down(place: &TestDir) -> (Unpacker, PathBuf) {
    let (program, pid) = (place.path("nelly-unpack"), place.path("pid"));
    let script = format!(
        "#!/bin/sh\necho $$ >'{0}.new'; mv '{0}.new' '{0}'; exec '{PROGRAM}' \"$@\"\n",
        pid.display()
    );
    // By a name of its own, so that no other test's child has it open for writing.
    fs::write(program.with_extension("new"), script).unwrap();
    fs::set_permissions(program.with_extension("new"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(program.with_extension("new"), &program).unwrap();
    // The shell needs no variable.
    (Unpacker::at(vec![program]), pid)
}

/// An archive, during which the process that reads it is killed.
struct Killing<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where that happens.
    kill_at: usize,
    pid: PathBuf,
    killed: bool,
}

impl Read for Killing<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.kill_at && !self.killed {
            let limit = Instant::now() + Duration::from_secs(60);
            while !self.pid.exists() {
                assert!(Instant::now() < limit, "the process was not started");
                std::thread::yield_now();
            }
            let pid = fs::read_to_string(&self.pid)?.trim().parse().unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL)?;
            self.killed = true;
        }
        let more = out.len().min(self.bytes.len() - self.at).min(4096);
        out[..more].copy_from_slice(&self.bytes[self.at..][..more]);
        self.at += more;
        Ok(more)
    }
}

#[test]
fn one_that_is_killed_leaves_nothing() {
    let bytes = saved(ArchiveFormat::Oci);
    for compressed in [false, true] {
        let bytes = if compressed { gzip(&bytes) } else { bytes.clone() };
        for kill_at in [0, 1, bytes.len() / 2, bytes.len()] {
            let place = TestDir::default();
            let (unpacker, pid) = written_down(&place);
            let mut killing = Killing { bytes: &bytes, at: 0, kill_at, pid, killed: false };
            let error = load(&place, Input::Stream(&mut killing), Some(&unpacker)).unwrap_err();
            assert_eq!(error.code(), "image_unpacker_failed");
            assert!(chain(&error).contains("signal: 9"), "{kill_at}: {}", chain(&error));
            assert!(is_empty(&place), "{kill_at}: {:?}", stored(&place).keys());
            // The next one begins anew.
            fs::remove_file(&killing.pid).unwrap();
            assert_eq!(load(&place, Input::Stream(&mut &bytes[..]), Some(&unpacker)).unwrap().len(), 4);
        }
    }
}

#[test]
fn an_engine_that_fails_in_the_middle_is_told_and_leaves_nothing() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::Error::other("the engine failed")) } else { self.0.read(out) }
        }
    }
    let place = TestDir::default();
    // Whole, as it looks.
    let bytes = saved(ArchiveFormat::Docker);
    let error = load(&place, Input::Stream(&mut Failing(&bytes)), Some(&unpacker())).unwrap_err();
    assert!(chain(&error).contains("the engine failed"), "{}", chain(&error));
    assert!(is_empty(&place));
}

#[test]
fn bombs_end_at_the_limit_and_leave_nothing() {
    let mut place = TestDir::default();
    place.limits.unpacked_bytes = 1 << 20;
    let bomb = gzip(&vec![0; 64 << 20]);
    fs::write(place.path("bomb"), &bomb).unwrap();
    for from_file in [false, true] {
        let path = place.path("bomb");
        let mut stream = &bomb[..];
        let input = if from_file { Input::File(&path) } else { Input::Stream(&mut stream) };
        let error = load(&place, input, Some(&unpacker())).unwrap_err();
        // A name for each thing that is too much.
        assert!(!chain(&error).contains("signal"), "{}", chain(&error));
        assert!(is_empty(&place));
    }
    // Names that take more memory than they are worth: they are bounded together.
    let place = TestDir::default();
    let mut tar = Tar::default();
    let long = "n/".repeat(2000);
    for number in 0..9000 {
        tar.add(file(&format!("{long}{number}")), b"");
    }
    let many = gzip(&tar.end());
    for with in [None, Some(&unpacker())] {
        let error = load(&place, Input::Stream(&mut &many[..]), with).unwrap_err();
        assert!(chain(&error).contains("longer names"), "{}", chain(&error));
        assert!(is_empty(&place));
    }
}

#[test]
fn one_that_is_not_wanted_any_more_is_ended_and_leaves_nothing() {
    struct Impatient(usize);
    impl Progress for Impatient {
        fn update(&mut self, _: ImageStage, _: u64, _: Option<u64>) {}
        fn cancelled(&mut self) -> bool {
            self.0 += 1;
            self.0 > 3
        }
    }
    /// An archive that never ends.
    struct Endless;
    impl Read for Endless {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            out.fill(0);
            Ok(out.len())
        }
    }
    let place = TestDir::default();
    let (unpacker, pid) = written_down(&place);
    let local = LocalStore::open(place.local()).unwrap();
    let input = Input::Stream(&mut Endless);
    let error = local.load(input, None, &place.limits, Some(&unpacker), &mut Impatient(0)).unwrap_err();
    assert!(matches!(error, TransferError::Cancelled), "{error}");
    assert!(is_empty(&place));
    // It was waited for, so that there is not even its remains.
    if let Ok(pid) = fs::read_to_string(pid) {
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }
}

#[test]
fn a_program_that_is_missing_is_named() {
    let place = TestDir::default();
    let nowhere = Unpacker::at(vec!["/nowhere/nelly-unpack".into()]);
    let bytes = saved(ArchiveFormat::Oci);
    let error = load(&place, Input::Stream(&mut &bytes[..]), Some(&nowhere)).unwrap_err();
    assert!(chain(&error).contains("looked for /nowhere/nelly-unpack"), "{}", chain(&error));
    assert!(is_empty(&place));
}

//! The program that unpacks one file: what others pack, what is damaged, and what is too large.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nelly-unpack");

/// Runs the program; its end, and what it wrote.
fn unpack(directory: &Path, packed: &[u8], words: &[&str]) -> (Output, Vec<u8>) {
    let (from, to) = (directory.join("from"), directory.join("to"));
    fs::write(&from, packed).unwrap();
    let (input, output) = (File::open(&from).unwrap(), File::create(&to).unwrap());
    let done = Command::new(PROGRAM)
        .arg("stream")
        .args(words)
        .stdin(input)
        .stdout(output)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    (done, fs::read(to).unwrap())
}

/// What a tool of the host makes of a file called `disk`.
fn packed(directory: &Path, data: &[u8], command: &str) -> Vec<u8> {
    fs::write(directory.join("disk"), data).unwrap();
    let done = Command::new("sh").arg("-c").arg(command).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// Data with a hole in it, and one at its end.
fn data() -> Vec<u8> {
    let mut data: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()[0]).collect();
    data[200_000..2_000_000].fill(0);
    data.resize(data.len() + 500_001, 0);
    data
}

const PACKERS: &[(&str, &str)] = &[
    ("gz", "gzip -c disk"),
    ("xz", "xz -c disk"),
    ("zst", "zstd -q -c disk"),
    ("bz2", "bzip2 -c disk"),
    (
        "zip",
        "python3 -c 'import zipfile,sys; z=zipfile.ZipFile(sys.stdout.buffer,\"w\",zipfile.ZIP_DEFLATED); z.write(\"disk\"); z.close()'",
    ),
];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_others_pack_comes_out_whole_and_with_its_holes() {
    let place = tempfile::tempdir().unwrap();
    let data = data();
    let most = data.len().to_string();
    for (form, command) in PACKERS {
        let packed = packed(place.path(), &data, command);
        let (done, out) = unpack(place.path(), &packed, &[form, &most]);
        assert!(done.status.success() && done.stderr.is_empty(), "{form}: {}", said(&done));
        assert!(out == data, "{form}");
        let blocks = fs::metadata(place.path().join("to")).unwrap().blocks() * 512;
        assert!(blocks < 1_600_000, "{form}: {blocks} bytes on the disk");
        // Twice in one file: all but an archive say that both belong to it.
        if *form != "zip" {
            let twice = [&packed[..], &packed[..]].concat();
            let (done, out) = unpack(place.path(), &twice, &[form, "99999999"]);
            assert!(
                done.status.success() && out == [&data[..], &data[..]].concat(),
                "{form}: {}",
                said(&done)
            );
        }
        // One byte less than there is.
        let less = (data.len() - 1).to_string();
        let (done, out) = unpack(place.path(), &packed, &[form, &less]);
        assert!(
            !done.status.success() && said(&done).contains("bytes that are allowed"),
            "{form}: {}",
            said(&done)
        );
        assert!(out.len() < data.len());
    }
}

#[test]
fn what_is_cut_or_changed_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let data = data();
    for (form, command) in PACKERS {
        let packed = packed(place.path(), &data, command);
        for cut in [0, 5, packed.len() / 2, packed.len() - 1] {
            // Nothing at all is an empty stream of zstd's.
            if cut == 0 && *form == "zst" {
                continue;
            }
            let (done, _) = unpack(place.path(), &packed[..cut], &[form, "99999999"]);
            assert!(
                !done.status.success() && said(&done).starts_with("nelly-unpack: "),
                "{form}, {cut}: {}",
                said(&done)
            );
        }
        for at in [packed.len() / 3, packed.len() / 2] {
            let mut wrong = packed.clone();
            wrong[at] ^= 0x10;
            let (done, out) = unpack(place.path(), &wrong, &[form, "99999999"]);
            assert!(!done.status.success() || out == data, "{form}: a changed byte was not seen");
        }
        let (done, _) =
            unpack(place.path(), b"this is none of them, and long enough to be read", &[form, "9999"]);
        assert!(!done.status.success(), "{form}");
    }
}

#[test]
fn a_bomb_ends_at_the_limit_and_writes_next_to_nothing() {
    let place = tempfile::tempdir().unwrap();
    // Zeroes, and bytes that are none.
    for (source, what) in [("/dev/zero", "zeroes"), ("yes |", "lines")] {
        let command = if source.starts_with('/') {
            format!("head -c 200M {source} | gzip -1c")
        } else {
            format!("{source} head -c 200M | gzip -1c")
        };
        let bomb = packed(place.path(), b"", &command);
        assert!(bomb.len() < 2 << 20, "{what}: {}", bomb.len());
        let (done, out) = unpack(place.path(), &bomb, &["gz", "10000000"]);
        assert!(said(&done).contains("more than the 10000000 bytes"), "{what}: {}", said(&done));
        assert!(out.len() <= 10_000_000, "{what}");
    }
    // A window that would take more memory than it gets.
    let window = [&0xfd2f_b528_u32.to_le_bytes()[..], &[0, 21 << 3, 1, 0, 0]].concat();
    let (done, _) = unpack(place.path(), &window, &["zst", "10000000"]);
    assert!(!done.status.success(), "{}", said(&done));
}

#[test]
fn a_file_of_an_archive_is_taken_by_its_name() {
    let place = tempfile::tempdir().unwrap();
    let zip = packed(
        place.path(),
        b"",
        "python3 -c 'import zipfile,sys; z=zipfile.ZipFile(sys.stdout.buffer,\"w\"); z.writestr(\"final/\",b\"\"); \
         z.writestr(\"final/Image.gz\",b\"kernel\"); z.writestr(\"../escape\",b\"bad\"); z.writestr(\"/etc/passwd\",b\"bad\"); z.close()'",
    );
    let (done, out) = unpack(place.path(), &zip, &["zip", "100", "final/Image.gz"]);
    assert!(done.status.success() && out == b"kernel", "{}", said(&done));
    // A name is a name in the archive, and no path here.
    let (done, out) = unpack(place.path(), &zip, &["zip", "100", "../escape"]);
    assert!(done.status.success() && out == b"bad", "{}", said(&done));
    assert!(!place.path().parent().unwrap().join("escape").exists());
    let (done, _) = unpack(place.path(), &zip, &["zip", "100", "final/vmlinuz"]);
    assert_eq!(done.status.code(), Some(3), "{}", said(&done));
    assert!(said(&done).contains("has no file \"final/vmlinuz\"; it has"), "{}", said(&done));
    let (done, _) = unpack(place.path(), &zip, &["zip", "100"]);
    assert!(said(&done).contains("not exactly one file"), "{}", said(&done));
}

#[test]
fn it_reaches_no_file_and_refuses_nonsense() {
    let place = tempfile::tempdir().unwrap();
    for words in [&["gz"][..], &["rar", "5"], &["gz", "5", "x"], &["gz", "-1"]] {
        let (done, _) = unpack(place.path(), b"", words);
        assert_eq!(done.status.code(), Some(1), "{words:?}");
        assert!(said(&done).contains("no order"), "{}", said(&done));
    }
    // What strace sees after the filter is in force opens nothing.
    let data = packed(place.path(), &data(), "xz -c disk");
    let mut from = File::create(place.path().join("from")).unwrap();
    from.write_all(&data).unwrap();
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(place.path().join("calls"))
        .args([PROGRAM, "stream", "xz", "99999999"])
        .stdin(File::open(place.path().join("from")).unwrap())
        .stdout(File::create(place.path().join("to")).unwrap())
        .output()
        .unwrap();
    assert!(traced.status.success(), "{}", said(&traced));
    let calls = fs::read_to_string(place.path().join("calls")).unwrap();
    let (_, after) = calls.split_once("seccomp(SECCOMP_SET_MODE_FILTER").expect("a filter is set");
    for call in ["open(", "openat(", "socket(", "execve(", "linkat(", "unlink"] {
        assert!(!after.contains(call), "{call}: {after}");
    }
    assert!(after.contains("read("), "{after}");
}

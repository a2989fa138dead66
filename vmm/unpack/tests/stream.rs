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

/// What a shell prints that runs in a directory with a file `disk`.
fn tarred(directory: &Path, script: &str) -> Vec<u8> {
    packed(directory, &data(), &format!("mkdir -p final && {script}"))
}

#[test]
fn a_file_of_a_tar_archive_comes_out_whole_and_with_its_holes() {
    let place = tempfile::tempdir().unwrap();
    let data = data();
    let most = data.len().to_string();
    for (form, command) in [
        ("tar", "tar -cf - disk"),
        ("tar", "tar -Scf - --hole-detection=raw disk"),
        ("tar", "tar -Scf - --hole-detection=raw --format=pax disk"),
        ("tar", "tar -cf - --format=v7 ./disk"),
        ("tar.gz", "tar -czf - disk"),
        ("tar.xz", "tar -cf - disk | xz -c"),
        ("tar.zst", "tar -cf - disk | zstd -q -c"),
        ("tar.bz2", "tar -cf - disk | bzip2 -c"),
    ] {
        let packed = tarred(place.path(), command);
        for words in [&[form, most.as_str()][..], &[form, most.as_str(), "disk"]] {
            let (done, out) = unpack(place.path(), &packed, words);
            assert!(done.status.success() && done.stderr.is_empty(), "{command}: {}", said(&done));
            assert!(out == data, "{command}");
            let blocks = fs::metadata(place.path().join("to")).unwrap().blocks() * 512;
            assert!(blocks < 1_600_000, "{command}: {blocks} bytes on the disk");
        }
        let less = (data.len() - 1).to_string();
        let (done, out) = unpack(place.path(), &packed, &[form, &less]);
        assert!(said(&done).contains("bytes that are allowed"), "{command}: {}", said(&done));
        assert!(!done.status.success() && out.len() < data.len());
        // One that was cut is seen, also where its checksum or the mark of its end is missing.
        let last = match command {
            "tar -cf - disk" => 512 + data.len().next_multiple_of(512),
            _ if form == "tar" => packed.len() * 3 / 4,
            _ => packed.len() - 1,
        };
        for cut in [0, 5, packed.len() / 2, last] {
            let (done, _) = unpack(place.path(), &packed[..cut], &[form, "99999999", "disk"]);
            assert!(!done.status.success(), "{command}: cut at {cut}");
        }
    }
}

#[test]
fn a_tar_archive_has_its_files_by_their_names_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let script = "echo old >final/Image && tar -cf a.tar ./final/Image && echo new >final/Image && ln -sf /etc/passwd final/link && \
         ln -f final/Image final/other && mkfifo final/pipe && ln -sf Image final/../late && \
         tar -rf a.tar ./final && tar -rf a.tar --transform 's,disk,../escape,' -P disk && cat a.tar";
    let tar = tarred(place.path(), script);
    // The last of a name counts, as where an archive is unpacked whole.
    for name in ["final/Image", "./final/Image"] {
        let (done, out) = unpack(place.path(), &tar, &["tar", "100", name]);
        assert!(done.status.success() && out == b"new\n", "{}", said(&done));
    }
    // A name is a name in the archive, and no path here.
    let (done, out) = unpack(place.path(), &tar, &["tar", "99999999", "../escape"]);
    assert!(done.status.success() && out == data(), "{}", said(&done));
    assert!(!place.path().parent().unwrap().join("escape").exists());
    for (name, what) in
        [("final/link", "a symbolic link"), ("final/pipe", "a pipe"), ("final/", "a directory")]
    {
        let (done, out) = unpack(place.path(), &tar, &["tar", "100", name]);
        assert_eq!((done.status.code(), out.len()), (Some(1), 0), "{name}");
        assert!(said(&done).contains(what), "{name}: {}", said(&done));
    }
    let (done, _) = unpack(place.path(), &tar, &["tar", "100", "final/vmlinuz"]);
    assert_eq!(done.status.code(), Some(3), "{}", said(&done));
    assert!(said(&done).contains("it has \"final/Image\""), "{}", said(&done));
    let (done, _) = unpack(place.path(), &tar, &["tar", "99999999"]);
    assert!(said(&done).contains("not exactly one file"), "{}", said(&done));
    // Only one, twice.
    let tar = tarred(
        place.path(),
        "tar -cf b.tar disk && mkdir -p empty && tar -rf b.tar ./disk empty && cat b.tar",
    );
    let (done, out) = unpack(place.path(), &tar, &["tar", "99999999"]);
    assert!(done.status.success() && out == data(), "{}", said(&done));
}

#[test]
fn hostile_tar_archives_end_with_a_sentence() {
    let place = tempfile::tempdir().unwrap();
    let tar = tarred(place.path(), "tar -cf - --format=gnu disk");
    // A header with other bytes at a place, and the checksum that fits.
    let changed = |at: usize, bytes: &[u8]| {
        let mut tar = tar.clone();
        tar[at..at + bytes.len()].copy_from_slice(bytes);
        tar[148..156].fill(b' ');
        let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar
    };
    for (at, bytes, needle) in [
        (124, &b"77777777777\0"[..], "ends in the middle"),
        (124, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], ""),
        (124, &[0xff; 12], ""),
        (124, b"nonsense    ", ""),
        // A long name of 3 MB, and an extended header.
        (156, b"L", ""),
        (156, b"x", ""),
        // A sparse file whose map says nothing of its bytes.
        (156, b"S", ""),
        (156, b"5", ""),
    ] {
        let (done, out) = unpack(place.path(), &changed(at, bytes), &["tar", "9999999", "disk"]);
        let words = said(&done);
        assert!(!done.status.success() && words.starts_with("nelly-unpack: "), "{at} {bytes:?}: {words}");
        assert!(words.contains(needle) && words.lines().count() == 1, "{at} {bytes:?}: {words}");
        assert!(out.len() <= 9_999_999);
    }
    // Names that a terminal would obey, and long ones, in a message.
    let long = format!("tar -cf - --transform 's,disk,{}\x1b[31m,' disk", "n".repeat(3000));
    let (done, _) = unpack(place.path(), &tarred(place.path(), &long), &["tar", "9999999", "x"]);
    let words = said(&done);
    assert!(done.status.code() == Some(3) && words.len() < 300 && !words.contains('\x1b'), "{words}");
    // What is passed over is bounded, too, before the file and behind the archive's end.
    for script in [
        "truncate -s 300M big && tar -cf - big disk | gzip -1c",
        "{ tar -cf - disk; head -c 300M /dev/zero; } | gzip -1c",
    ] {
        let bomb = tarred(place.path(), script);
        let (done, _) = unpack(place.path(), &bomb, &["tar.gz", "10000000", "disk"]);
        assert!(said(&done).contains("more than the 10000000 bytes"), "{script}: {}", said(&done));
    }
}

#[test]
fn it_reaches_no_file_and_refuses_nonsense() {
    let place = tempfile::tempdir().unwrap();
    for words in [&["gz"][..], &["rar", "5"], &["gz", "5", "x"], &["gz", "-1"], &["tar.rar", "5"]] {
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

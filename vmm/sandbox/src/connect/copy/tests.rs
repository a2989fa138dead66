//! Both ends of a copy, with the guest's end played.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::thread;

use super::*;

fn result_of(code: u32, message: &str) -> Vec<u8> {
    let message = message.to_owned();
    messages::InspectResult { code, message, ..Default::default() }.write_to_bytes().unwrap()
}

/// A tree as an archive in a buffer.
fn archived(source: &std::path::Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let source = FromHost::open(source.as_os_str().as_bytes(), false).unwrap();
    source.write(&mut bytes, false, &mut |note| panic!("{note}")).unwrap();
    bytes
}

/// What comes of a stream that the guest writes.
fn out(write: impl FnOnce(UnixStream) + Send + 'static) -> CopyOut {
    let (near, far) = UnixStream::pair().unwrap();
    thread::spawn(move || write(far));
    CopyOut::new(near)
}

#[test]
fn what_the_guest_cannot_do_is_the_error_and_a_cut_stream_is_one() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("file"), vec![1; 300_000]).unwrap();
    let bytes = archived(&home.path().join("file"));
    let to = home.path().join("copy");
    let copy = |copied: CopyOut| {
        to_host(copied, b"/file", to.as_os_str().as_bytes(), false, &mut |note| panic!("{note}"))
    };
    let whole = bytes.clone();
    copy(out(move |stream| {
        let mut frames = ArchiveWriter::new(stream);
        frames.write_all(&whole).unwrap();
        frames.finish(&[], &result_of(0, "")).unwrap();
    }))
    .unwrap();
    assert_eq!(fs::read(&to).unwrap(), vec![1; 300_000]);
    fs::remove_file(&to).unwrap();
    let part = bytes[..200_000].to_vec();
    let failed = copy(out(move |stream| {
        let mut frames = ArchiveWriter::new(stream);
        frames.write_all(&part).unwrap();
        frames.finish(&[], &result_of(1, "cannot read it")).unwrap();
    }));
    assert!(matches!(&failed, Err(CopyError::Guest(text)) if text == "cannot read it"), "{failed:?}");
    let part = bytes[..200_000].to_vec();
    let cut = copy(out(move |stream| {
        let mut frames = ArchiveWriter::new(stream);
        frames.write_all(&part).unwrap();
        frames.flush().unwrap();
    }));
    assert!(matches!(&cut, Err(CopyError::Cut)), "{cut:?}");
    // Whole as an archive, but not said to be.
    let unsaid = copy(out(move |stream| {
        let mut frames = ArchiveWriter::new(stream);
        frames.write_all(&bytes).unwrap();
        frames.flush().unwrap();
    }));
    assert!(matches!(&unsaid, Err(CopyError::Cut)), "{unsaid:?}");
    let names: Vec<_> = fs::read_dir(home.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "file" || name == "copy"), "{names:?}");
}

#[test]
fn a_guest_that_answers_early_is_heard_and_one_that_goes_is_told() {
    for (answer, sentence) in [(Some("the disk is full"), "the disk is full"), (None, "ended in the middle")]
    {
        let (near, far) = UnixStream::pair().unwrap();
        let guest = thread::spawn(move || {
            (&far).read_exact(&mut [0; 1000]).unwrap();
            if let Some(answer) = answer {
                ArchiveWriter::new(&far).finish(&[], &result_of(1, answer)).unwrap();
            }
        });
        let mut copied = CopyIn::new(near);
        let mut written = Ok(());
        while written.is_ok() {
            written = copied.write_all(&[0; 65_536]);
        }
        let error = CopyError::from(ArchiveError::Stream("write", written.unwrap_err()));
        assert!(error.to_string().contains(sentence), "{error}");
        guest.join().unwrap();
    }
}

#[test]
fn an_interrupt_ends_a_copy_that_hangs() {
    let (near, _far) = UnixStream::pair().unwrap();
    let mut copied = CopyOut::new(near);
    let interrupt = copied.interrupt().unwrap();
    let reader = thread::spawn(move || copied.read(&mut [0; 10]).unwrap_err().to_string());
    interrupt.end();
    assert!(reader.join().unwrap().contains("ended in the middle"));
}

#[test]
fn a_guest_cannot_leave_the_destination() {
    let home = tempfile::tempdir().unwrap();
    let (tree, to) = (home.path().join("tree"), home.path().join("to"));
    for directory in [&tree, &to] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(tree.join("file"), "x").unwrap();
    // What was asked for is a file; what comes is a tree of other names.
    let bytes = archived(&tree);
    to_host(&bytes[..], b"/etc/hosts", to.as_os_str().as_bytes(), false, &mut |_| {}).unwrap();
    let names: Vec<_> = fs::read_dir(&to).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(names, ["hosts"]);
    // A directory was asked for, and a file comes.
    let bytes = archived(&tree.join("file"));
    // A link that an earlier copy may have brought: it leads nowhere any more.
    let (link, victim) = (to.with_file_name("planted"), to.with_file_name("victim"));
    std::fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    let refused = to_host(&bytes[..], b"/etc/hosts", link.as_os_str().as_bytes(), false, &mut |_| {});
    assert!(matches!(refused, Err(CopyError::Link(_))), "{refused:?}");
    assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
    let refused = to_host(&bytes[..], b"/etc/.", to.as_os_str().as_bytes(), false, &mut |_| {});
    assert!(refused.is_err(), "{refused:?}");
    let missing = to.join("none/there");
    let refused = to_host(&bytes[..], b"/file", missing.as_os_str().as_bytes(), false, &mut |_| {});
    assert!(refused.unwrap_err().to_string().contains("no directory"));
}

#[test]
fn holes_of_a_guest_stay_holes_and_it_fills_no_disk() {
    use std::os::unix::fs::MetadataExt;
    let home = tempfile::tempdir().unwrap();
    let (file, to) = (home.path().join("file"), home.path().join("to"));
    fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let bytes = archived(&file);
    assert!(bytes.len() > 8 << 20, "an archive for an agent of before has its zeros");
    to_host(&bytes[..], b"/file", to.as_os_str().as_bytes(), false, &mut |note| panic!("{note}")).unwrap();
    let copied = fs::metadata(&to).unwrap();
    assert!(copied.len() == 8 << 20 && copied.blocks() < 100, "{copied:?}");
    // What it may fill is what an image may: not the whole of a disk.
    let opened = OwnedFd::from(fs::File::open(home.path()).unwrap());
    let found = rustix::fs::fstatvfs(&opened).unwrap();
    let most = room(&opened, b"there").unwrap().bytes;
    let free = found.f_bavail * found.f_frsize;
    // Others write there, too.
    assert!(most <= free / 16 * 15 + (1 << 30) && most > 0 && most < u64::MAX, "{most} {free}");
}

#[test]
fn a_guest_that_neither_gives_nor_takes_is_left() {
    let soon = Some(std::time::Duration::from_millis(20));
    let (near, _far) = UnixStream::pair().unwrap();
    near.set_read_timeout(soon).unwrap();
    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("to");
    let left = to_host(CopyOut::new(near), b"/file", to.as_os_str().as_bytes(), false, &mut |_| {});
    assert!(matches!(left, Err(CopyError::Silent)) && !to.exists(), "{left:?}");

    let pair = || {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_read_timeout(soon).unwrap();
        near.set_write_timeout(soon).unwrap();
        (CopyIn::new(near), far)
    };
    // It takes nothing: no buffer holds all of it.
    let (mut copy, _far) = pair();
    let error = copy.write_all(&vec![7; 64 << 20]).unwrap_err();
    assert!(error.to_string().contains("neither takes nor gives"), "{error}");
    // It takes all, and does not say what became of it.
    let (mut copy, _far) = pair();
    copy.write_all(b"little").unwrap();
    assert!(matches!(copy.finish(), Err(CopyError::Silent)));
}

#[test]
fn sentences_of_the_guest_are_cut() {
    let long = "ä".repeat(10_000);
    let (note, why) = (long.clone(), long.clone());
    let mut copied = out(move |stream| {
        ArchiveWriter::new(stream).finish(&[note], &result_of(1, &why)).unwrap();
    });
    let error = CopyError::from(ArchiveError::Stream("read", copied.read(&mut [0]).unwrap_err()));
    assert!(matches!(&error, CopyError::Guest(text) if *text == long[..4096]), "{error:?}");
    assert_eq!(copied.notes(), [&long[..4096]]);
    let (near, far) = UnixStream::pair().unwrap();
    let answer = long.clone();
    let guest = thread::spawn(move || {
        ArchiveWriter::new(&far).finish(&[answer], &result_of(0, "")).unwrap();
        (&far).read_to_end(&mut Vec::new()).unwrap();
    });
    assert_eq!(CopyIn::new(near).finish().unwrap(), [&long[..4096]]);
    guest.join().unwrap();
}

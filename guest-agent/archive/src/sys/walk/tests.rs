use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;

use super::super::linux::{self, identity};
use super::*;

/// Both ways say the same of a path: what is there, and which directory it is.
fn same(root: &File, path: &[u8]) {
    let which = |opened: Result<OwnedFd, Errno>| opened.and_then(rustix::fs::fstat).map(|one| identity(&one));
    let kernel = (linux::look_in(root, path), which(linux::directory_in(root, path)));
    let walked = (look_in(root, path), which(directory_in(root, path)));
    assert_eq!(walked, kernel, "{}", String::from_utf8_lossy(path));
}

#[test]
fn a_path_that_would_leave_the_root_stays_in_it() {
    let home = tempfile::tempdir().unwrap();
    let top = home.path().join("root");
    std::fs::create_dir_all(top.join("a/b/c")).unwrap();
    std::fs::write(home.path().join("outside"), "x").unwrap();
    std::fs::create_dir(home.path().join("elsewhere")).unwrap();
    std::fs::write(top.join("a/file"), "x").unwrap();
    let outside = home.path().join("elsewhere");
    for (name, to) in [
        ("up", Path::new("../../../..")),
        ("outside", Path::new("../outside")),
        ("a/b/far", Path::new("../../../elsewhere")),
        ("whole", &*outside),
        ("back", Path::new("a/b/../b/c")),
        ("slash", Path::new("/a/b/")),
        ("loop", Path::new("loop")),
        ("first", Path::new("second/x")),
        ("second", Path::new("first/y")),
        ("a/tofile", Path::new("file")),
    ] {
        symlink(to, top.join(name)).unwrap();
    }
    let mut chain = "a".to_owned();
    for number in 0..42 {
        symlink(&chain, top.join(format!("chain{number}"))).unwrap();
        chain = format!("chain{number}");
    }
    let root = File::open(&top).unwrap();
    let long = [&b"a/../"[..]; 819].concat();
    let too_long = [&b"a/../"[..]; 820].concat();
    for path in [
        "",
        "/",
        ".",
        "..",
        "//",
        "/..",
        "a",
        "a/",
        "a/.",
        "a/..",
        "a/b/../..",
        "a/b/../../..",
        "a/b/c/../../../../a",
        "up",
        "up/",
        "up/a",
        "up/outside",
        "outside",
        "outside/",
        "a/b/far",
        "a/b/far/",
        "whole",
        "whole/x",
        "back",
        "back/",
        "back/..",
        "back/../file",
        "slash",
        "slash/c",
        "slash/..",
        "loop",
        "loop/",
        "first",
        "first/x",
        "a/file",
        "a/file/",
        "a/file/.",
        "a/file/..",
        "a/tofile",
        "a/tofile/",
        "a/tofile/x",
        "none",
        "none/x",
        "none/..",
        "a/none",
        "chain0/b",
        "chain38/b",
        "chain39/b",
        "chain40/b",
        "chain41",
        "chain41/",
    ] {
        same(&root, path.as_bytes());
    }
    same(&root, &long);
    same(&root, &too_long);
    assert!(long.len() <= PATH_MOST && too_long.len() > PATH_MOST);
    // Names of 255 bytes are, and longer ones are not.
    for length in [255, 256] {
        same(&root, &vec![b'n'; length]);
    }
    assert_eq!(look_in(&root, b"up/../../outside"), look_in(&root, b"outside"));
    assert_eq!(directory_in(&root, b"whole").unwrap_err(), Errno::NOENT);
}

#[test]
fn what_is_no_file_is_looked_at_without_opening_it() {
    let home = tempfile::tempdir().unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, home.path().join("pipe"), 0o000.into()).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(home.path().join("socket")).unwrap();
    let root = File::open(home.path()).unwrap();
    for (path, kind) in [("pipe", FileType::Fifo), ("socket", FileType::Socket)] {
        assert_eq!(look_in(&root, path.as_bytes()), Ok(Seen::Other(kind)));
        same(&root, path.as_bytes());
        assert_eq!(directory_in(&root, path.as_bytes()).unwrap_err(), Errno::NOTDIR);
    }
}

#[test]
fn a_link_that_is_swapped_in_leads_nowhere_outside() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let home = tempfile::tempdir().unwrap();
    let top = home.path().join("root");
    std::fs::create_dir_all(top.join("a/deep")).unwrap();
    std::fs::create_dir_all(home.path().join("outside/deep")).unwrap();
    symlink(home.path().join("outside"), top.join("link")).unwrap();
    let root = File::open(&top).unwrap();
    let inside = identity(&rustix::fs::stat(top.join("a/deep")).unwrap());
    let done = AtomicBool::new(false);
    // Asserted when the other thread has been told to end: it would be waited for.
    let (found, wrong) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&root, "a", &root, "link", rustix::fs::RenameFlags::EXCHANGE)
                    .unwrap();
            }
        });
        let (mut found, mut wrong) = ([0, 0], None);
        let begun = std::time::Instant::now();
        // On a busy machine the threads may take turns for long.
        while wrong.is_none()
            && (found[0] + found[1] < 4000
                || found.contains(&0) && begun.elapsed() < std::time::Duration::from_secs(60))
        {
            match directory_in(&root, b"a/deep") {
                Ok(opened) => match rustix::fs::fstat(opened) {
                    Ok(meta) if identity(&meta) == inside => found[0] += 1,
                    other => wrong = Some(format!("{:?}", other.map(|meta| identity(&meta)))),
                },
                Err(Errno::NOENT | Errno::AGAIN) => found[1] += 1,
                Err(error) => wrong = Some(error.to_string()),
            }
        }
        done.store(true, Ordering::Relaxed);
        (found, wrong)
    });
    assert_eq!(wrong, None, "{found:?}");
    assert!(!found.contains(&0), "inside, nowhere: {found:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn walks_come_where_the_kernel_comes(
        links in prop::collection::vec(("[ab]{1}(/[ab]){0,2}", "/?([ab]|\\.|\\.\\.|up)(/([ab]|\\.\\.|up)){0,3}/?"), 0..8),
        paths in prop::collection::vec("/?([ab]|\\.|\\.\\.)(/([ab]|\\.|\\.\\.)){0,5}/?", 1..24),
    ) {
        let home = tempfile::tempdir().unwrap();
        let top = home.path().join("root");
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::create_dir(home.path().join("up")).unwrap();
        for (name, to) in &links {
            // A name that is taken, or whose directory is none, is left out.
            let _ = symlink(to, top.join(name));
        }
        let root = File::open(&top).unwrap();
        for path in &paths {
            same(&root, path.as_bytes());
        }
    }
}

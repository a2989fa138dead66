use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use super::*;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The error of opening `path` as a directory.
fn refusal(path: &Path) -> String {
    let error = TrustedDir::open(path).unwrap_err();
    assert_eq!(error.to_string(), TrustedDir::make(path).unwrap_err().to_string());
    error.to_string()
}

#[test]
fn who_may_own_and_write_what() {
    let found = |owner, mode| Found { path: Path::new("/x"), owner, mode };
    let believed = |user, owner, mode| found(owner, mode).believed(user).is_ok();
    let passed = |user, owner, mode| found(owner, mode).on_the_way(user, 0).is_ok();
    assert!(believed(1000, 1000, 0o755) && believed(1000, 0, 0o755) && believed(0, 0, 0o700));
    assert!(!believed(0, 1000, 0o700) && !believed(1000, 1001, 0o700));
    assert!(!believed(0, 0, 0o770) && !believed(0, 0, 0o707) && !believed(0, 0, 0o1777));
    assert!(passed(1000, 0, 0o1777) && passed(1000, 1000, 0o1770) && passed(0, 0, 0o755));
    assert!(!passed(0, 0, 0o777) && !passed(1000, 1000, 0o775) && !passed(0, 1000, 0o700));
    // Inside a user namespace `/` belongs to an unmapped user, and so may parents, but not what
    // is trusted.
    assert!(found(65534, 0o755).on_the_way(1000, 65534).is_ok() && !believed(1000, 65534, 0o755));
}

#[test]
fn directories_are_made_for_their_owner_alone_also_below_a_sticky_one() {
    let place = tempfile::tempdir().unwrap();
    mode(place.path(), 0o1777);
    let path = place.path().join("a/b");
    assert!(TrustedDir::open(&path).unwrap().is_none() && !place.path().join("a").exists());
    let dir = TrustedDir::make(&path).unwrap();
    for made in [&path, &place.path().join("a")] {
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    }
    let file = dir.open_or_make("f").unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(dir.leads_to("f", &file).unwrap());
    assert!(dir.make_new("f").is_err());
    assert!(dir.read("f").unwrap().is_some() && dir.read("g").unwrap().is_none());
    assert_eq!(dir.names().unwrap(), ["f"]);
    dir.remove("f").unwrap();
    dir.remove("f").unwrap();
    // With `..`, and relative.
    assert_eq!(
        TrustedDir::open(&path.join("../b")).unwrap().unwrap().path(),
        fs::canonicalize(&path).unwrap()
    );
    assert!(TrustedDir::open(Path::new(".")).unwrap().is_some() && TrustedDir::open(Path::new("")).is_err());
}

#[test]
fn what_others_may_write_is_refused_with_the_cure() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a/b");
    TrustedDir::make(&path).unwrap();
    for bad in [0o770, 0o707, 0o1777] {
        mode(&path, bad);
        let message = refusal(&path);
        assert!(message.contains(&format!("a/b is writable by users other than its owner (mode {bad:o}")));
        assert!(message.contains("chmod go-w"), "{message}");
    }
    mode(&path, 0o700);
    mode(&place.path().join("a"), 0o777);
    assert!(refusal(&path).contains("a is writable"), "one on the way");
    // A directory that does not exist is not created below one that is not trusted.
    assert!(
        TrustedDir::open(&path.join("c")).unwrap().is_none() && open_file(&path.join("c")).unwrap().is_none()
    );
    assert!(TrustedDir::make(&path.join("c")).is_err() && !path.join("c").exists());
    mode(&place.path().join("a"), 0o700);
    let dir = TrustedDir::open(&path).unwrap().unwrap();
    fs::write(path.join("f"), "x").unwrap();
    fs::create_dir(path.join("d")).unwrap();
    mode(&path.join("f"), 0o666);
    mode(&path.join("d"), 0o777);
    assert!(matches!(dir.read("f"), Err(TrustError::Writable { .. })));
    assert!(matches!(open_file(&path.join("f")), Err(TrustError::Writable { .. })));
    assert!(matches!(dir.make_subdirectory("d"), Err(TrustError::Writable { .. })));
}

#[test]
fn what_belongs_to_another_user_is_refused_by_his_number() {
    if !user_is_root() {
        eprintln!("not root: nothing can be given to another user");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a/b");
    TrustedDir::make(&path).unwrap();
    fs::write(path.join("f"), "x").unwrap();
    chown(path.join("f"), Some(12345), None).unwrap();
    let dir = TrustedDir::open(&path).unwrap().unwrap();
    assert!(matches!(dir.read("f"), Err(TrustError::Owner { owner: 12345, user: 0, .. })));
    assert!(matches!(open_file(&path.join("f")), Err(TrustError::Owner { .. })));
    for theirs in [path.clone(), place.path().join("a")] {
        chown(&theirs, Some(12345), None).unwrap();
        let message = refusal(&path);
        let whose = format!("{} belongs to user 12345, but this program runs as user 0", theirs.display());
        assert!(message.contains(&whose) && message.contains("chown"), "{message}");
    }
    chown(&path, Some(0), None).unwrap();
    chown(place.path().join("a"), Some(0), None).unwrap();
    // A link is trusted if its owner is.
    let link = place.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(TrustedDir::open(&link).unwrap().is_some());
    std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
    assert!(refusal(&link).contains("link belongs to user 12345"));
}

fn user_is_root() -> bool {
    user() == 0
}

#[test]
fn links_are_followed_on_the_way_and_never_below() {
    let place = tempfile::tempdir().unwrap();
    let real = place.path().join("real");
    let dir = TrustedDir::make(&real).unwrap();
    symlink("real", place.path().join("relative")).unwrap();
    symlink(&real, place.path().join("absolute")).unwrap();
    for link in ["relative", "absolute", "relative/../absolute"] {
        let opened = TrustedDir::open(&place.path().join(link)).unwrap().unwrap();
        assert_eq!(opened.path().canonicalize().unwrap(), real.canonicalize().unwrap());
    }
    // The configuration file may be a link to another file of the user.
    fs::write(real.join("f"), "x").unwrap();
    symlink("f", real.join("to-f")).unwrap();
    symlink("loop", real.join("loop")).unwrap();
    assert!(open_file(&real.join("to-f")).unwrap().is_some());
    assert!(open_file(&real.join("loop")).unwrap_err().to_string().contains("cannot follow"));
    assert!(matches!(open_file(&real), Err(TrustError::Kind { .. })));
    // Below an opened directory links are not followed.
    symlink(place.path().join("planted"), real.join("lock")).unwrap();
    symlink(place.path(), real.join("images")).unwrap();
    assert!(matches!(dir.open_or_make("lock"), Err(TrustError::Kind { .. })));
    assert!(matches!(dir.read("to-f"), Err(TrustError::Kind { .. })));
    assert!(matches!(dir.make_subdirectory("images"), Err(TrustError::Kind { .. })));
    assert!(!place.path().join("planted").exists());
    // Opening a FIFO does not block.
    rustix::fs::mkfifoat(rustix::fs::CWD, real.join("fifo"), 0o600.into()).unwrap();
    assert!(matches!(dir.read("fifo"), Err(TrustError::Kind { .. })));
    assert!(matches!(dir.subdirectory("f"), Err(TrustError::Kind { .. })));
    assert!(matches!(TrustedDir::open(&real.join("f/x")), Err(TrustError::Kind { .. })));
}

#[test]
fn a_lock_belongs_to_an_open_file_and_asking_takes_none() {
    let place = tempfile::tempdir().unwrap();
    let dir = TrustedDir::make(&place.path().join("d")).unwrap();
    let (one, two) = (dir.open_or_make("lock").unwrap(), dir.open_or_make("lock").unwrap());
    assert!(!is_locked(&one).unwrap() && !is_locked(&two).unwrap());
    assert!(try_lock(&one).unwrap() && try_lock(&one).unwrap() && !try_lock(&two).unwrap());
    assert!(is_locked(&two).unwrap() && is_locked(dir.read("lock").unwrap().unwrap()).unwrap());
    let copy = one.try_clone().unwrap();
    drop(one);
    assert!(is_locked(&two).unwrap());
    drop(copy);
    assert!(!is_locked(&two).unwrap() && try_lock(&two).unwrap());
}

#[test]
fn a_tree_is_removed_and_what_its_links_lead_to_is_not() {
    let place = tempfile::tempdir().unwrap();
    let dir = TrustedDir::make(&place.path().join("d")).unwrap();
    dir.make_new("kept").unwrap();
    fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
    fs::write(dir.path().join("tree/a/b/f"), "x").unwrap();
    symlink(dir.path(), dir.path().join("tree/a/up")).unwrap();
    symlink("tree", dir.path().join("link")).unwrap();
    dir.remove_tree("tree").unwrap();
    dir.remove_tree("tree").unwrap();
    assert!(dir.remove_tree("link").is_err() && dir.remove_tree("kept").is_err());
    let mut names = dir.names().unwrap();
    names.sort();
    assert_eq!(names, ["kept", "link"]);
    assert!(dir.reach("kept").exists());
}

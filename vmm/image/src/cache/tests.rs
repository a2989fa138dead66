use std::fs;
use std::os::unix::fs::symlink;

use super::*;

#[test]
fn an_unknown_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Cache::open(dir.path()).unwrap().prepare().unwrap();
    Cache::open(dir.path()).unwrap().prepare().unwrap();
    for found in ["", "nelly-cache 2\n", &"x".repeat(1000)] {
        fs::write(dir.path().join("version"), found).unwrap();
        assert!(matches!(Cache::open(dir.path()), Err(CacheError::Version { .. })), "{found}");
    }
}

#[test]
fn a_directory_that_does_not_exist_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("a/b");
    let cache = Cache::open(&missing).unwrap();
    assert!(cache.find(&Digest::sha256(b""), &[]).unwrap().is_none());
    assert!(!cache.has_verified(&Digest::sha256(b"")).unwrap());
    assert!(!missing.exists());
}

#[test]
fn one_lock_at_a_time_and_no_file_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let workshop = Cache::open(dir.path()).unwrap().prepare().unwrap();
    let key = Digest::sha256(b"k");
    let inside = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let lock = workshop.lock(&key, &mut || false).unwrap().unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    std::thread::yield_now();
                    assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                    drop(lock);
                }
            });
        }
    });
    assert_eq!(fs::read_dir(dir.path().join("locks")).unwrap().count(), 0);
}

#[test]
fn stale_files_go_when_the_lock_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let workshop = Cache::open(dir.path()).unwrap().prepare().unwrap();
    let (key, other) = (Digest::sha256(b"k"), Digest::sha256(b"other"));
    let (dead, path) = (Digest::sha256(b"dead"), |key: &Digest| dir.path().join("scratch").join(key.hex()));
    let scratch = |key: &Digest| path(key).with_extension("1.0");
    let held = workshop.lock(&other, &mut || false).unwrap().unwrap();
    for key in [&key, &other, &dead] {
        fs::write(scratch(key), "x").unwrap();
    }
    // A killed process leaves the file of its lock behind, without a lock on it.
    let name = dir.path().join("locks").join(dead.hex());
    fs::write(&name, "").unwrap();
    let _lock = workshop.lock(&key, &mut || false).unwrap().unwrap();
    assert!(!scratch(&key).exists() && !scratch(&dead).exists() && !name.exists());
    assert!(scratch(&other).exists() && dir.path().join("locks").join(&held.name).exists());
}

#[test]
fn a_planted_link_is_neither_followed_nor_believed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let workshop = cache.prepare().unwrap();
    let key = Digest::sha256(b"k");
    let target = dir.path().join("anywhere");
    symlink(&target, dir.path().join("locks").join(key.hex())).unwrap();
    assert!(workshop.lock(&key, &mut || false).is_err());
    symlink(&target, dir.path().join("images").join(image_name(&key))).unwrap();
    assert!(workshop.find(&key, &[]).is_err());
    symlink(&target, dir.path().join("verified").join(manifest_name(&key))).unwrap();
    assert!(workshop.remember(&key).is_err());
    assert!(!target.exists());
    fs::remove_dir_all(dir.path().join("scratch")).unwrap();
    symlink("/", dir.path().join("scratch")).unwrap();
    assert!(cache.prepare().is_err());
}

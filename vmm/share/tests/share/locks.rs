//! Locks on the host's files.

use std::fs;
use std::os::fd::AsFd;

use nelly_share::wire::Op;
use nelly_share::{Locks, Options};

use crate::guest::{EINVAL, ENOSYS, Guest, O_RDWR, body, guest, long, tree, word};

const EAGAIN: i32 = 11;
const EINTR: i32 = 4;
const ENOLCK: i32 = 37;
const READ: u32 = 0;
const WRITE: u32 = 1;
const NONE: u32 = 2;

fn locking(waiters: usize) -> (Guest, tempfile::TempDir, u64, u64) {
    let tree = tree();
    let locks = Locks::Host { waiters };
    let guest = Guest::new(tree.path(), Options { locks, ..Options::default() });
    let node = guest.walk("g").unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    (guest, tree, node, handle)
}

/// `fuse_lk_in`.
fn lock(handle: u64, owner: u64, range: (u64, u64), kind: u32, flock: bool) -> crate::guest::Body {
    let body = body().long(handle).long(owner).long(range.0).long(range.1);
    body.word(kind).word(1).word(u32::from(flock)).word(0)
}

fn set(guest: &Guest, lock: crate::guest::Body) -> Result<(), i32> {
    guest.ask(Op::SetLk, 0, lock).map(drop)
}

const ALL: (u64, u64) = (0, i64::MAX.cast_unsigned());

#[test]
fn owners_exclude_each_other_by_ranges() {
    let (guest, _tree, node, handle) = locking(0);
    set(&guest, lock(handle, 1, (0, 9), WRITE, false)).unwrap();
    set(&guest, lock(handle, 1, (5, 9), NONE, false)).unwrap();
    assert_eq!(set(&guest, lock(handle, 2, (0, 9), WRITE, false)), Err(EAGAIN));
    set(&guest, lock(handle, 2, (5, 20), WRITE, false)).unwrap();
    let found = guest.ask(Op::GetLk, node, lock(handle, 3, ALL, READ, false)).unwrap();
    assert_eq!((long(&found, 0), long(&found, 8), word(&found, 16)), (0, 4, WRITE));
    // A process that closes the file has no locks on it any more.
    guest.ask(Op::Flush, node, body().long(handle).long(0).long(1)).unwrap();
    set(&guest, lock(handle, 3, (0, 4), READ, false)).unwrap();
    set(&guest, lock(handle, 4, (0, 4), READ, false)).unwrap();
    set(&guest, lock(handle, 2, ALL, NONE, false)).unwrap();
    let found = guest.ask(Op::GetLk, node, lock(handle, 5, ALL, READ, false)).unwrap();
    assert_eq!(word(&found, 16), NONE);
    for bad in [lock(handle, 1, (9, 0), READ, false), lock(handle, 1, ALL, 3, false)] {
        assert_eq!(set(&guest, bad), Err(EINVAL));
    }
}

#[test]
fn the_host_sees_them_and_they_see_the_hosts() {
    let (guest, tree, node, handle) = locking(0);
    let file = fs::File::open(tree.path().join("g")).unwrap();
    set(&guest, lock(handle, 1, ALL, WRITE, true)).unwrap();
    let try_lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    assert!(rustix::fs::flock(file.as_fd(), try_lock).is_err());
    // The open file of the guest ends, and its lock with it.
    let body = body().long(handle).word(0).word(2).long(1);
    guest.ask(Op::Release, node, body).unwrap();
    rustix::fs::flock(file.as_fd(), try_lock).unwrap();
    let handle = guest.open(node, O_RDWR).unwrap();
    assert_eq!(set(&guest, lock(handle, 1, ALL, READ, true)), Err(EAGAIN));
    drop(file);
    set(&guest, lock(handle, 1, ALL, READ, true)).unwrap();
    guest.server.reset();
    let file = fs::File::open(tree.path().join("g")).unwrap();
    rustix::fs::flock(file.as_fd(), try_lock).unwrap();
}

#[test]
fn waits_end_by_release_interruption_and_reset() {
    let (guest, _tree, node, handle) = locking(2);
    let wait = |unique: u64, owner: u64| {
        guest.ask_as(unique, 33, node, &lock(handle, owner, ALL, WRITE, false).0, 64)
    };
    set(&guest, lock(handle, 1, ALL, WRITE, false)).unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| wait(1001, 2));
        let second = scope.spawn(|| wait(1002, 3));
        // Interrupted until it was: the request may not have begun to wait.
        while !second.is_finished() {
            guest.ask(Op::Interrupt, 0, body().long(1002)).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(second.join().unwrap(), Err(EINTR));
        set(&guest, lock(handle, 1, ALL, NONE, false)).unwrap();
        first.join().unwrap().unwrap();
        assert_eq!(set(&guest, lock(handle, 1, ALL, WRITE, false)), Err(EAGAIN), "the waiter has it");
        let third = scope.spawn(|| wait(1003, 4));
        while !third.is_finished() {
            guest.server.reset();
            std::thread::yield_now();
        }
        // It ends, one way or the other: the lock that was in its way may have ended first.
        let _ = third.join().unwrap();
    });
}

#[test]
fn no_more_wait_than_may() {
    let (guest, _tree, node, handle) = locking(0);
    set(&guest, lock(handle, 1, ALL, WRITE, false)).unwrap();
    assert_eq!(guest.ask(Op::SetLkW, node, lock(handle, 2, ALL, WRITE, false)), Err(ENOLCK));
    // Owners are bounded too.
    let tree = tree();
    let options = Options { locks: Locks::Host { waiters: 0 }, descriptors: Some(16), ..Options::default() };
    let guest = Guest::new(tree.path(), options);
    let handle = guest.open(guest.walk("g").unwrap(), O_RDWR).unwrap();
    let set = |owner| set(&guest, lock(handle, owner, (owner, owner), WRITE, false));
    assert!((0..4).all(|owner| set(owner).is_ok()));
    assert_eq!(set(4), Err(ENOLCK));
}

#[test]
fn without_them_the_guest_keeps_its_own() {
    let (guest, _tree) = guest();
    let flags = word(&guest.init(), 12);
    assert_eq!(flags & (1 << 1 | 1 << 10), 0);
    let handle = guest.open(guest.walk("g").unwrap(), O_RDWR).unwrap();
    for op in [Op::GetLk, Op::SetLk, Op::SetLkW] {
        assert_eq!(guest.ask(op, 0, lock(handle, 1, ALL, READ, false)), Err(ENOSYS));
    }
}

//! Directories listed.

use std::collections::BTreeSet;
use std::fs;

use nelly_share::Options;
use nelly_share::wire::Op;

use crate::guest::{EINVAL, Guest, O_RDWR, ROOT, body, guest};

fn fill(path: &std::path::Path, count: usize) {
    for n in 0..count {
        fs::File::create(path.join(format!("{n:06}"))).unwrap();
    }
}

/// 5 % of what `soak` runs: NELLY_FULL_SHARE sets the whole count.
fn many() -> usize {
    if std::env::var_os("NELLY_FULL_SHARE").is_some() { 100_000 } else { 5_000 }
}

#[test]
fn a_huge_directory_is_listed_whole_with_few_descriptors() {
    let tree = tempfile::tempdir().unwrap();
    fill(tree.path(), many());
    let guest = Guest::new(tree.path(), Options { descriptors: Some(16), ..Options::default() });
    for plus in [false, true] {
        let found = guest.list(ROOT, plus);
        assert_eq!(found.len(), many());
        assert!(found.keys().enumerate().all(|(n, name)| *name == format!("{n:06}")));
    }
    assert_eq!(guest.server.usage().inodes, many() + 1);
}

/// As `rm -r` does it: an entry is removed as soon as it was read.
#[test]
fn deleting_while_listing_finds_everything() {
    for plus in [false, true] {
        let tree = tempfile::tempdir().unwrap();
        fill(tree.path(), 2_000);
        let guest = Guest::new(tree.path(), Options { descriptors: Some(16), ..Options::default() });
        let handle = guest.open_dir(ROOT).unwrap();
        let (mut offset, mut removed) = (0, 0);
        loop {
            let page = guest.list_page(handle, offset, plus).unwrap();
            let Some(last) = page.last() else { break };
            offset = last.next;
            for entry in page {
                if entry.name.len() == 6 {
                    guest.unlink(ROOT, &entry.name).unwrap();
                    removed += 1;
                }
            }
        }
        assert_eq!(removed, 2_000, "plus {plus}");
        guest.rmdir(ROOT, "000000").unwrap_err();
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_listing_goes_back_and_begins_anew() {
    let tree = tempfile::tempdir().unwrap();
    fill(tree.path(), 1_000);
    let guest = Guest::new(tree.path(), Options::default());
    let handle = guest.open_dir(ROOT).unwrap();
    let first = guest.list_page(handle, 0, false).unwrap();
    let second = guest.list_page(handle, first.last().unwrap().next, false).unwrap();
    // To the middle of the first page, which the driver took half of.
    let middle = &first[first.len() / 2];
    let again = guest.list_page(handle, middle.next, false).unwrap();
    assert_eq!(again[0].name, first[first.len() / 2 + 1].name);
    assert_eq!(guest.list_page(handle, first.last().unwrap().next, false).unwrap()[0].name, second[0].name);
    // rewinddir sees what is new.
    fs::write(tree.path().join("new"), b"").unwrap();
    let mut names = BTreeSet::new();
    let mut offset = 0;
    loop {
        let page = guest.list_page(handle, offset, false).unwrap();
        let Some(last) = page.last() else { break };
        offset = last.next;
        names.extend(page.into_iter().map(|entry| entry.name));
    }
    assert!(names.contains(&b"new"[..]));
    assert_eq!(names.len(), 1_003);
    // At the end it stays at the end.
    assert!(guest.list_page(handle, offset, false).unwrap().is_empty());
}

/// While one listing goes on, others evict its descriptor.
#[test]
fn a_listing_survives_being_closed_in_between() {
    let tree = tempfile::tempdir().unwrap();
    fill(tree.path(), 1_000);
    for n in 0..40 {
        fs::create_dir(tree.path().join(format!("d{n:05}"))).unwrap();
    }
    let guest = Guest::new(tree.path(), Options { descriptors: Some(16), ..Options::default() });
    let handle = guest.open_dir(ROOT).unwrap();
    let (mut offset, mut names) = (0, Vec::new());
    loop {
        let page = guest.list_page(handle, offset, true).unwrap();
        let Some(last) = page.last() else { break };
        offset = last.next;
        names.extend(page.into_iter().map(|entry| entry.name).filter(|name| name.len() == 6));
        for n in 0..40 {
            let dir = guest.walk(&format!("d{n:05}")).unwrap();
            let _ = guest.lookup(dir, "x");
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 1_040);
}

#[test]
fn strange_requests_for_entries_are_refused() {
    let (guest, _tree) = guest();
    let handle = guest.open_dir(ROOT).unwrap();
    let ask = |handle, offset, size| {
        let body = body().long(handle).long(offset).word(size).word(0).long(0).long(0);
        guest.ask(Op::ReadDir, ROOT, body).map(drop)
    };
    assert_eq!(ask(handle, 0, 0), Err(EINVAL));
    assert_eq!(ask(handle, 0, 24), Err(EINVAL));
    assert_eq!(ask(handle, u64::MAX, 4096), Err(EINVAL));
    assert_eq!(ask(handle + 1, 0, 4096), Err(crate::guest::EBADF));
    ask(handle, 0, u32::MAX).unwrap();
    let (_, file) = guest.create(ROOT, "file", O_RDWR, 0o644).unwrap();
    assert_eq!(ask(file, 0, 4096), Err(20));
    // A place that nobody was told is somewhere or nowhere, and nothing worse.
    for offset in [3, 1 << 40, i64::MAX.cast_unsigned()] {
        let _ = ask(handle, offset, 4096);
    }
}

#[test]
fn the_longest_names_are_listed() {
    let tree = tempfile::tempdir().unwrap();
    let name = "n".repeat(255);
    fs::write(tree.path().join(&name), b"x").unwrap();
    let guest = Guest::new(tree.path(), Options::default());
    for plus in [false, true] {
        assert!(guest.list(ROOT, plus).contains_key(&name));
    }
    assert!(guest.lookup(ROOT, &name).is_ok());
}

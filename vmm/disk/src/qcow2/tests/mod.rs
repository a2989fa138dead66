//! Tests of the format: a plain model, a played crash, images of QEMU, hostile headers. The judge
//! is qemu-img.

mod crash;
mod foreign;
mod hostile;
mod model;
mod regressions;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::{BackingName, CreateOptions, Qcow2, create};
use crate::testing::Recorder;
use crate::traits::{Disk, ReadAt};

/// Runs qemu-img; returns what it wrote, and whether it succeeded.
fn qemu_img(words: &[&str]) -> (String, bool) {
    let done = Command::new("qemu-img").args(words).output().expect("qemu-img, of Debian's qemu-utils");
    let said = [done.stdout, done.stderr].concat();
    (String::from_utf8_lossy(&said).into_owned(), done.status.success())
}

/// Runs qemu-img, which must succeed.
fn qemu(words: &[&str]) -> String {
    let (said, good) = qemu_img(words);
    assert!(good, "qemu-img {words:?}: {said}");
    said
}

/// The exit code of qemu-img check, and what it wrote: 0 without errors, 2 with corruptions, 3 with
/// leaks only.
fn judged(bytes: &[u8]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("judged.qcow2");
    std::fs::write(&file, bytes).unwrap();
    std::fs::write(directory.path().join("base.raw"), b"").unwrap();
    let done = Command::new("qemu-img").args(["check", "-f", "qcow2", word(&file)]).output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// qemu-img finds neither corruptions nor leaks.
fn judge_clean(bytes: &[u8]) {
    let (code, said) = judged(bytes);
    assert_eq!(code, Some(0), "{said}");
}

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A new image in memory.
fn new_image(options: &CreateOptions) -> Arc<Recorder> {
    let store = Arc::new(Recorder::default());
    create(Box::new(Arc::clone(&store)), options).unwrap();
    store
}

/// Opens an image in memory over `backing`.
fn open(store: &Arc<Recorder>, backing: Option<&[u8]>) -> Qcow2 {
    let backing = backing.map(|bytes| Box::new(bytes.to_vec()) as Box<dyn ReadAt>);
    Qcow2::open(Box::new(Arc::clone(store)), backing, false).unwrap()
}

/// Writes all of `bytes`.
fn write(disk: &Qcow2, mut offset: u64, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let written = disk.write_at(&bytes, offset)?;
        offset += written as u64;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// All of a disk.
fn contents(disk: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.len()).unwrap()];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Options of an image over `base.raw`, or over nothing.
fn options(size: u64, cluster_bits: u32, over: bool) -> CreateOptions {
    let backing = BackingName { name: "base.raw".to_owned(), format: Some("raw".to_owned()) };
    CreateOptions { backing: over.then_some(backing), cluster_bits, size }
}

//! Each kind of device with something behind it, what is seen of that, and requests.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nelly_disk::RawDisk;

use super::Phase;
use crate::memory::{Backing, Slot};
use crate::virtio::balloon::{Balloon, BalloonView};
use crate::virtio::blk::Block;
use crate::virtio::console::{Console, Ends};
use crate::virtio::device::Device;
use crate::virtio::mem::{MemoryControl, MemoryDevice};
use crate::virtio::rng::Rng;
use crate::virtio::testing::Part;

const SECTORS: u64 = 16;
const HOTPLUG: u64 = 1 << 27;
const HOTPLUG_BYTES: u64 = 32 << 20;

pub(super) fn rng(_: Option<&()>) -> (Box<dyn Device>, ()) {
    (Box::new(Rng), ())
}

pub(super) fn random_request(_: usize, seed: u8) -> Vec<Part> {
    vec![Part::Write(u32::from(seed % 40))]
        .into_iter()
        .chain((seed > 200).then_some(Part::Write(9)))
        .collect()
}

pub(super) fn disk_of(bytes: &[u8], name: &str, read_only: bool) -> (Box<dyn Device>, File) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let other = file.try_clone().unwrap();
    (Box::new(Block::new(Box::new(RawDisk::new(file, read_only).unwrap()), name)), other)
}

pub(super) fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub(super) fn disk(other: Option<&File>) -> (Box<dyn Device>, File) {
    let fresh = (0..SECTORS * 512).map(|n| u8::try_from(n % 251).unwrap()).collect();
    disk_of(&other.map_or(fresh, contents), "root", false)
}

pub(super) fn disk_request(_: usize, seed: u8) -> Vec<Part> {
    let sector = u64::from(seed / 8 % 20);
    let header = |kind: u32| Part::Read([&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    match seed % 8 {
        0..3 => vec![header(1), Part::Read(vec![seed; 512]), Part::Write(1)],
        3..5 => vec![header(0), Part::Write(512), Part::Write(1)],
        5 => vec![header(8), Part::Write(20), Part::Write(1)],
        6 => vec![header(4), Part::Write(1)],
        _ => vec![header(u32::from(seed)), Part::Write(1)],
    }
}

/// The console writes to the other end of a stream.
pub(super) fn console(_: Option<&UnixStream>) -> (Box<dyn Device>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let input = Some(ours.try_clone().unwrap().into());
    (Box::new(Console::new(Ends { input, output: Some(ours.into()) })), theirs)
}

/// What came; it is answered, so that input comes, too.
pub(super) fn said(mut stream: &UnixStream, phase: Phase) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let len = stream.read(&mut bytes).unwrap_or(0);
    bytes.truncate(len);
    // More than waits already has no room: no harm.
    if phase == Phase::After {
        let _ = stream.write(&bytes[..len.min(7)]);
    }
    bytes
}

pub(super) fn console_request(queue: usize, seed: u8) -> Vec<Part> {
    match queue {
        0 => vec![Part::Write(u32::from(seed % 50))],
        _ => vec![Part::Read(vec![seed; usize::from(seed % 100) + 1]), Part::Read(vec![7])],
    }
}

pub(super) fn memory_device(other: Option<&MemoryControl>) -> (Box<dyn Device>, MemoryControl) {
    let slot = Slot::new(7, HOTPLUG, HOTPLUG_BYTES, Backing::Anonymous, false).unwrap();
    let (device, control) = MemoryDevice::new(slot);
    if other.is_none() {
        control.request(HOTPLUG_BYTES / 2).unwrap();
    }
    (Box::new(device), control)
}

pub(super) fn memory_request(_: usize, seed: u8) -> Vec<Part> {
    let mut bytes = vec![seed % 4, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend((HOTPLUG + u64::from(seed / 4 % 16) * (2 << 20)).to_le_bytes());
    bytes.extend([1 + seed / 64, 0, 0, 0, 0, 0, 0, 0]);
    vec![Part::Read(bytes), Part::Write(10)]
}

/// Reports of pages of a region that no ring lies in.
pub(super) fn balloon(_: Option<&BalloonView>) -> (Box<dyn Device>, BalloonView) {
    let slot = Slot::new(7, HOTPLUG, HOTPLUG_BYTES, Backing::Anonymous, false).unwrap();
    let (device, view) = Balloon::new(&[slot]);
    (Box::new(device), view)
}

pub(super) fn report(_: usize, seed: u8) -> Vec<Part> {
    vec![Part::Write(1 + u32::from(seed) * 8), Part::Write(1)]
}

pub(super) fn sizes(control: &MemoryControl) -> Vec<u8> {
    let (requested, plugged) = control.sizes();
    [requested.to_le_bytes(), plugged.to_le_bytes()].concat()
}

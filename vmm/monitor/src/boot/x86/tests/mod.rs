//! Kernels of a few bytes loaded into real guest memory, and read back as a kernel would.

mod bad;
mod good;
mod mutated;

use std::fs::File;
use std::io::Write;

use vm_memory::{Bytes, GuestAddress};

use nelly_disk::{FileReader, ReadAt};

use super::*;
use crate::arch::x86_64;
use crate::boot::testing::{self, Segment};
use crate::boot::{Image, reader};
use crate::config::BootProtocol;

const MIB: u64 = 1 << 20;
/// Where the sample kernel lies.
const BASE: u64 = 0x20_0000;

fn temporary(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn file_of(bytes: &[u8]) -> FileReader<File> {
    FileReader::new(temporary(bytes)).unwrap()
}

fn memory_of(mib: u64) -> GuestRam {
    GuestRam::new(mib * MIB, crate::memory::Backing::Anonymous).unwrap()
}

fn transport(address: u64, line: u32) -> MmioSlot {
    MmioSlot { address, line: x86_64::line(line).unwrap() }
}

fn request(kernel: &dyn ReadAt) -> BootRequest<'_> {
    BootRequest {
        kernel: Image { name: "KERNEL", bytes: kernel },
        initrd: None,
        command_line: "console=ttyS0",
        cpus: 1,
        transports: &[],
        platform: Platform::Auto,
        protocol: BootProtocol::Auto,
        seed: None,
        kernel_place: None,
    }
}

/// What both segments of [`sample`] hold.
fn code() -> Vec<u8> {
    (0..200_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3] & 0x3f).collect()
}

/// A kernel in two segments: code at 2 MiB, and data at 3 MiB and 16 bytes with two pages of zeros
/// behind.
fn sample(notes: &[u8], sections: &[(&str, &[u8])]) -> Vec<u8> {
    let code = code();
    let segments = [
        Segment { address: BASE, bytes: &code, memory: code.len() as u64 },
        Segment { address: 0x30_0010, bytes: b"data", memory: 0x2000 },
    ];
    testing::elf(BASE + 0x40, &segments, notes, sections)
}

fn load_bytes(bytes: &[u8], memory: &GuestRam) -> Result<Loaded, BootError> {
    let file = file_of(bytes);
    load(memory, &request(&file))
}

fn registers(loaded: &Loaded) -> x86_64::BootState {
    let BootState::X86(state) = loaded.state else { panic!("not for x86") };
    state
}

fn read(memory: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn read_u32(memory: &GuestRam, at: u64) -> u32 {
    memory.memory().read_obj(GuestAddress(at)).unwrap()
}

fn read_u64(memory: &GuestRam, at: u64) -> u64 {
    memory.memory().read_obj(GuestAddress(at)).unwrap()
}

fn read_text(memory: &GuestRam, at: u64) -> String {
    let bytes = read(memory, at, 4096);
    let end = bytes.iter().position(|&byte| byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

/// Runs a compressor of the machine, which judges what our own packers in [`testing`] cannot: its
/// real options.
fn packed_by(program: &str, args: &[&str], bytes: &[u8]) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut input = temporary(bytes);
    input.rewind().unwrap();
    let mut output = tempfile::tempfile().unwrap();
    let status = std::process::Command::new(program)
        .args(args)
        .stdin(input)
        .stdout(output.try_clone().unwrap())
        .status()
        .unwrap_or_else(|error| panic!("install {program}: {error}"));
    assert!(status.success());
    let mut packed = Vec::new();
    output.rewind().unwrap();
    output.read_to_end(&mut packed).unwrap();
    packed
}

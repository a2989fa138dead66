//! Kernels of a few instructions, and time limits.
#![allow(dead_code, reason = "no test needs all of it")]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nelly_vmm::boot::testing::{Segment, elf};
use nelly_vmm::sys::anonymous::memory_file;

/// `limit` on a machine that may be slower than the one it was made for: `make test` measures how
/// many times, and says so in `NELLY_SLOWNESS`.
pub(crate) fn scaled(limit: Duration) -> Duration {
    let slowness = std::env::var("NELLY_SLOWNESS").ok().and_then(|text| text.parse().ok());
    limit.mul_f64(slowness.unwrap_or(1.0_f64).clamp(1.0, 10.0))
}

/// Ends this process, and with it the monitors that it holds, if it is still there after `limit`
/// ([`scaled`]): what hangs would hold up everybody who waits for it.
pub(crate) fn watchdog(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(scaled(limit));
        eprintln!("the test hangs: it was to end within {limit:?}");
        std::process::exit(101);
    });
}

/// jmp $
pub(crate) const SPIN: &[u8] = &[0xeb, 0xfe];

/// [`image`] in a memory file.
pub(crate) fn kernel(code: &[u8]) -> OwnedFd {
    let mut file = memory_file("kernel").unwrap();
    file.write_all(&image(code)).unwrap();
    file.into()
}

/// A static ELF file that is nothing but `code`, at 1 MiB.
pub(crate) fn image(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    elf(ENTRY, &[Segment { address: ENTRY, bytes: code, memory: code.len() as u64 }], &[], &[])
}

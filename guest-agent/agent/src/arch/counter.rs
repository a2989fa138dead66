#![allow(unsafe_code, reason = "the counter has no safe instruction")]
//! The processor's raw counter, which the host can relate to its own clock: stamping costs no
//! system call and no exit.

/// The time stamp counter.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux does not forbid it to its
    // processes.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The virtual counter, CNTVCT_EL0.
#[cfg(target_arch = "aarch64")]
#[must_use]
pub fn counter() -> u64 {
    let ticks;
    // SAFETY: reads a register that Linux lets its processes read; memory and flags stay as they
    // are. The barrier keeps the read in its place.
    unsafe {
        std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags))
    };
    ticks
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_runs_forward() {
        let first = super::counter();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(super::counter() > first);
    }
}

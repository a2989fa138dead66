#![allow(unsafe_code, reason = "the counter has no safe instruction")]
//! The processor's counter. The host can convert it to its own clock, and reading it needs no
//! system call and no exit.

/// The time stamp counter.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux allows it in user mode.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The virtual counter, CNTVCT_EL0.
#[cfg(target_arch = "aarch64")]
#[must_use]
pub fn counter() -> u64 {
    let ticks;
    // SAFETY: reads a register that Linux makes readable in user mode; memory and flags do not
    // change. The barrier prevents reordering of the read.
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

//! Model-specific registers (Intel manual, volume 4).

/// `IA32_TIME_STAMP_COUNTER`.
pub const TIME_STAMP_COUNTER: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_MISC_ENABLE`.
pub const MISC_ENABLE: u32 = 0x1a0;
/// `IA32_MTRR_DEF_TYPE`.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;

/// `IA32_MISC_ENABLE[0]`: fast string instructions. Intel only; off after reset, and kernels then
/// avoid `rep movsb`.
const FAST_STRING: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: enabled (bit 11), default type write-back (6): what firmware leaves
/// behind. Without it memory is uncached to a kernel that asks.
const WRITE_BACK: u64 = 1 << 11 | 6;

/// What firmware would have set: register and value. All others are as after reset, which is how
/// the hypervisor makes a vCPU (SYSENTER and SYSCALL targets 0, PAT at its default, TSC counting
/// from 0 in step with its neighbours).
#[must_use]
pub const fn initial() -> [(u32, u64); 2] {
    [(MTRR_DEF_TYPE, WRITE_BACK), (MISC_ENABLE, FAST_STRING)]
}

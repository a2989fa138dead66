//! Properties of the host.

use std::io;

use super::fits;

/// Bytes of physical memory.
///
/// # Errors
/// The system call failed.
#[cfg(target_os = "linux")]
pub fn memory_bytes() -> io::Result<u64> {
    let info = rustix::system::sysinfo();
    // The field's type differs between architectures and C libraries.
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_fallible_conversions,
        reason = "u32 on some targets"
    )]
    let total = u64::try_from(info.totalram).map_err(io::Error::other)?;
    Ok(total.saturating_mul(u64::from(info.mem_unit)))
}

/// Bytes of physical memory.
#[cfg(target_os = "macos")]
#[allow(unsafe_code, reason = "sysctlbyname has no safe wrapper here")]
pub fn memory_bytes() -> io::Result<u64> {
    let mut bytes = 0u64;
    let mut size = size_of::<u64>();
    // SAFETY: the name is a C string, the buffer is 8 writable bytes as `size` says, and nothing is
    // set.
    let result = unsafe {
        libc::sysctlbyname(
            c"hw.memsize".as_ptr(),
            std::ptr::from_mut(&mut bytes).cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    if result == 0 && size == size_of::<u64>() { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// The version of macOS, such as 15.3.1.
///
/// # Errors
/// The system does not tell.
#[cfg(target_os = "macos")]
#[allow(unsafe_code, reason = "sysctlbyname has no safe wrapper here")]
pub fn system_version() -> io::Result<String> {
    let mut text = [0u8; 64];
    let mut size = text.len();
    // SAFETY: the name is a C string, the buffer is `size` writable bytes, and nothing is set.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.osproductversion".as_ptr(),
            text.as_mut_ptr().cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let text = std::ffi::CStr::from_bytes_until_nul(&text).map_err(io::Error::other)?;
    Ok(text.to_string_lossy().into_owned())
}

/// Whether the processor can run guests for Hypervisor.framework.
#[cfg(target_os = "macos")]
#[must_use]
#[allow(unsafe_code, reason = "sysctlbyname has no safe wrapper here")]
pub fn has_hypervisor() -> bool {
    let mut answer: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>();
    // SAFETY: the name is a C string, the buffer is as many writable bytes as `size` says, and
    // nothing is set.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.hv_support".as_ptr(),
            std::ptr::from_mut(&mut answer).cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    result == 0 && answer == 1
}

/// Page size of the host in bytes, to which mappings and memory slots must be aligned.
#[must_use]
pub fn page_size() -> u64 {
    fits(rustix::param::page_size(), "no host has more than 64 bits")
}

/// CLOCK_MONOTONIC in nanoseconds. It calls the C library, which uses the vDSO also in static
/// programs, where rustix 1.1 makes a system call.
#[must_use]
#[allow(unsafe_code, reason = "the safe wrapper costs a system call")]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live structure. This clock cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let part = |value: i64| fits::<_, u64>(value, "the clock counts up from the start of the host");
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// Makes glibc use one heap for all threads. For programs whose threads allocate little, to be
/// called first in `main`. It saves four system calls and some resident pages for each thread.
/// Libraries should not call it.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
pub fn share_one_heap() {
    // SAFETY: sets a tunable of the allocator, which takes any value.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Does nothing: other C libraries have one heap, or manage several without this cost.
#[cfg(not(target_env = "gnu"))]
pub fn share_one_heap() {}

/// Raises the number of descriptors that this process may have as far as it may without privilege:
/// many sessions begin with 1024, for the sake of select(2). For programs, to be called first in
/// `main`; what they start inherits it. Libraries should not call it.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// Where there is no limit that says how far, as on macOS, whose kernel takes no more.
    const WITHOUT: u64 = 10_240;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(WITHOUT);
    if limit.current.is_some_and(|current| current < most) {
        // A limit that stays is one that is told of when it is reached.
        let _kept = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_host_has_memory_in_pages() {
        assert!(super::memory_bytes().unwrap() > 1 << 26);
        assert!(super::page_size().is_power_of_two());
    }
}

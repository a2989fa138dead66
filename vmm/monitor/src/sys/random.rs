//! Random bytes of the host's generator.
#![cfg_attr(
    not(target_os = "linux"),
    allow(unsafe_code, reason = "getentropy is a plain system call that no safe crate of the tree wraps")
)]

use std::io;

/// Fills `buffer` from the host's generator. Blocks only on a host that has not gathered entropy
/// since its own start.
#[cfg(target_os = "linux")]
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    use rustix::io::Errno;
    use rustix::rand::{GetRandomFlags, getrandom};
    let mut filled = 0;
    while filled < buffer.len() {
        match getrandom(&mut buffer[filled..], GetRandomFlags::empty()) {
            Ok(bytes) => filled += bytes,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Fills `buffer` from the host's generator.
#[cfg(not(target_os = "linux"))]
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    // getentropy gives at most 256 bytes a call.
    for piece in buffer.chunks_mut(256) {
        // SAFETY: the pointer and the length describe `piece`, which is writable for the call.
        if unsafe { libc::getentropy(piece.as_mut_ptr().cast(), piece.len()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn fills_the_whole_buffer_and_differs() {
        let (mut a, mut b) = ([0u8; 1000], [0u8; 1000]);
        super::random(&mut a).unwrap();
        super::random(&mut b).unwrap();
        assert_ne!(a, b);
        assert!(a[900..].iter().any(|&byte| byte != 0));
    }
}

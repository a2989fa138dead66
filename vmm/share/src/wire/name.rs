//! Names and targets of symbolic links.

use std::ffi::CStr;

use crate::errno::Errno;

/// Most bytes of a name, as everywhere in Linux.
pub const NAME_MAX: usize = 255;

/// Most bytes of a symbolic link's target (PATH_MAX without its NUL).
pub const TARGET_MAX: usize = 4095;

/// A name in a directory: 1 to 255 bytes, without `/` and NUL, neither `.` nor `..`. Relative to a
/// directory it leads to an entry of this directory and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// The name in `bytes`, which end with the only NUL.
    ///
    /// # Errors
    /// `ENAMETOOLONG` for more than 255 bytes, `EINVAL` for everything else that is no name.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Errno> {
        let name = CStr::from_bytes_with_nul(bytes).map_err(|_| Errno::INVAL)?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(Self(name)),
        }
    }

    /// As C wants it.
    #[must_use]
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

/// Where a symbolic link points: 1 to 4095 bytes without NUL. The server never follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a>(&'a CStr);

impl<'a> Target<'a> {
    /// The target in `bytes`, which end with the only NUL.
    ///
    /// # Errors
    /// `ENAMETOOLONG` for more than 4095 bytes, `EINVAL` for an empty one or one with a NUL.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Errno> {
        let target = CStr::from_bytes_with_nul(bytes).map_err(|_| Errno::INVAL)?;
        match target.to_bytes().len() {
            0 => Err(Errno::INVAL),
            1..=TARGET_MAX => Ok(Self(target)),
            _ => Err(Errno::NAMETOOLONG),
        }
    }

    /// As C wants it.
    #[must_use]
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        let long = [b'n'; 256];
        let with_nul = |bytes: &[u8]| [bytes, b"\0"].concat();
        assert_eq!(Name::new(&with_nul(&long[..255])).unwrap().as_c_str().count_bytes(), 255);
        assert_eq!(Name::new(&with_nul(&long)), Err(Errno::NAMETOOLONG));
        for good in ["a", "...", "..a", "a..", " ", "\u{e4}", "-", "a\nb", "\\"] {
            assert!(Name::new(&with_nul(good.as_bytes())).is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "/", "a/b", "/etc", "../a", "a/", "a\0b"] {
            assert_eq!(Name::new(&with_nul(bad.as_bytes())), Err(Errno::INVAL), "{bad:?}");
        }
        for unterminated in [&b""[..], b"a", b"a\0b", b"a\0\0"] {
            assert_eq!(Name::new(unterminated), Err(Errno::INVAL));
        }
    }

    #[test]
    fn targets_may_say_anything_but_nothing() {
        let with_nul = |bytes: &[u8]| [bytes, b"\0"].concat();
        for good in ["a", "/", "../../etc/passwd", "a/b"] {
            assert!(Target::new(&with_nul(good.as_bytes())).is_ok(), "{good:?}");
        }
        assert_eq!(Target::new(b"\0"), Err(Errno::INVAL));
        assert_eq!(Target::new(b"a"), Err(Errno::INVAL));
        assert_eq!(Target::new(b"a\0b\0"), Err(Errno::INVAL));
        assert!(Target::new(&with_nul(&[b't'; 4095])).is_ok());
        assert_eq!(Target::new(&with_nul(&[b't'; 4096])), Err(Errno::NAMETOOLONG));
    }
}

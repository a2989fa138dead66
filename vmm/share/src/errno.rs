//! Error numbers as FUSE carries them: Linux's, whatever the host is.

/// An error of the protocol: what `fuse_out_header.error` carries, with its sign reversed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(u16);

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)*
        }
    };
}

numbers! {
    /// The operation is not permitted, whoever asks.
    PERM = 1;
    /// There is no such name.
    NOENT = 2;
    /// A wait was interrupted.
    INTR = 4;
    /// The host failed.
    IO = 5;
    /// No such handle, or one that was opened for something else.
    BADF = 9;
    /// It cannot be done now.
    AGAIN = 11;
    /// Too much memory would be needed.
    NOMEM = 12;
    /// Permission denied.
    ACCES = 13;
    /// The name exists.
    EXIST = 17;
    /// Another file system.
    XDEV = 18;
    /// Not a directory.
    NOTDIR = 20;
    /// A directory.
    ISDIR = 21;
    /// The request makes no sense.
    INVAL = 22;
    /// A limit of the share is reached.
    NFILE = 23;
    /// The process has too many descriptors.
    MFILE = 24;
    /// Not a thing with such controls.
    NOTTY = 25;
    /// A file would become too large.
    FBIG = 27;
    /// No space.
    NOSPC = 28;
    /// The share is read-only.
    ROFS = 30;
    /// What is asked for does not fit where it should go.
    RANGE = 34;
    /// A name of more than 255 bytes.
    NAMETOOLONG = 36;
    /// No more locks.
    NOLCK = 37;
    /// The server does not have this operation.
    NOSYS = 38;
    /// The directory has entries.
    NOTEMPTY = 39;
    /// There is no such extended attribute.
    NODATA = 61;
    /// The versions of the protocol have nothing in common.
    PROTO = 71;
    /// A number that does not fit.
    OVERFLOW = 75;
    /// The file system or the mode of the share cannot do it.
    OPNOTSUPP = 95;
    /// The host replaced or removed what the driver still knows.
    STALE = 116;
}

impl Errno {
    /// The error with Linux's `number`; one that is no error number becomes `EIO`, for a driver
    /// takes nothing outside 1 to 511.
    #[must_use]
    pub fn linux(number: i32) -> Self {
        match u16::try_from(number) {
            Ok(number @ 1..=511) => Self(number),
            _ => Self::IO,
        }
    }

    /// Linux's number, 1 to 511.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_error_numbers_reach_a_driver() {
        assert_eq!(Errno::linux(2), Errno::NOENT);
        for number in [0, -2, 512, i32::MAX, i32::MIN] {
            assert_eq!(Errno::linux(number), Errno::IO, "{number}");
        }
    }
}

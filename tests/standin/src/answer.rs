//! What a function of the framework answers, and which failure of Linux is which of these.

/// `hv_return_t`. The values are those of the framework's headers (`hv_error.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Answer {
    /// HV_SUCCESS
    Success = 0,
    /// HV_ERROR
    Error = 0xfae9_4001,
    /// HV_BUSY
    Busy = 0xfae9_4002,
    /// HV_BAD_ARGUMENT
    BadArgument = 0xfae9_4003,
    /// HV_NO_RESOURCES
    NoResources = 0xfae9_4005,
    /// HV_NO_DEVICE
    NoDevice = 0xfae9_4006,
    /// HV_DENIED
    Denied = 0xfae9_4007,
    /// HV_UNSUPPORTED
    Unsupported = 0xfae9_400f,
}

impl Answer {
    /// Of a call of Linux that failed with this number.
    #[must_use]
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            // EPERM, EACCES
            1 | 13 => Self::Denied,
            // ENOENT, ENXIO, ENODEV, ENOTTY, EOPNOTSUPP
            2 | 6 | 19 | 25 | 95 => Self::Unsupported,
            // ENOMEM, EMFILE, ENFILE, ENOSPC
            12 | 23 | 24 | 28 => Self::NoResources,
            // EBUSY
            16 => Self::Busy,
            // EEXIST, EINVAL, E2BIG
            17 | 22 | 7 => Self::BadArgument,
            _ => Self::Error,
        }
    }

    /// As the C functions return it.
    #[must_use]
    pub fn code(self) -> i32 {
        (self as u32).cast_signed()
    }
}

/// As the C functions return it.
#[must_use]
pub fn code(result: Result<(), Answer>) -> i32 {
    result.err().unwrap_or(Answer::Success).code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_numbers_of_the_headers() {
        assert_eq!(code(Ok(())), 0);
        // err_local, subsystem "hv": negative as the type is signed.
        assert_eq!(code(Err(Answer::Error)), -85_377_023);
        assert_eq!(code(Err(Answer::of_errno(16))).cast_unsigned(), 0xfae9_4002);
        assert_eq!(
            [17, 13, 12, 19, 5].map(Answer::of_errno),
            [Answer::BadArgument, Answer::Denied, Answer::NoResources, Answer::Unsupported, Answer::Error]
        );
    }
}

//! Passwords, as `/etc/shadow` has them.

use sha_crypt::{Params, sha512_crypt};
use sha2::{Digest as _, Sha256};

use crate::error::SeedError;

/// The digits of crypt(3)'s base 64.
const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Characters of a salt at most; crypt(3) leaves further ones out.
const SALT_MAX: usize = 16;
/// Bytes of a password at most. glibc's crypt takes 255 of `$6$`, and PAM 511.
const PASSWORD_MAX: usize = 255;

/// A password that is hashed: all that a guest is told of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl std::fmt::Debug for Password {
    /// Not what it is: a hash can be guessed at.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Password(..)")
    }
}

impl Password {
    /// Hashes a password by SHA-512 with 5,000 rounds, `$6$` of crypt(3), which every guest's login
    /// knows.
    ///
    /// # Errors
    /// The password is empty, has more than 255 bytes or a control character.
    pub fn hash(plain: &str, salt: &Salt) -> Result<Self, SeedError> {
        // The password itself stands in no message.
        if plain.is_empty() || plain.len() > PASSWORD_MAX || plain.chars().any(char::is_control) {
            return Err(SeedError::Together(
                "the password is not one line of 1 to 255 bytes without control characters",
            ));
        }
        let digest = sha512_crypt(plain.as_bytes(), salt.0.as_bytes(), Params::RECOMMENDED);
        Ok(Self(format!("$6${}${}", salt.0, encoded(&digest))))
    }

    /// Takes a password that is hashed already, as crypt(3) writes it: `$6$...`, `$y$...`.
    ///
    /// # Errors
    /// It is not of that form.
    pub fn hashed(text: &str) -> Result<Self, SeedError> {
        // cloud-init takes what these begin with for hashes, and anything else for a password in
        // plain (config/cc_set_passwords.py); it reads `user:password`, so a colon ends it.
        let known = ["$1$", "$2a$", "$2y$", "$5$", "$6$", "$y$"];
        let clean = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if !known.iter().any(|known| text.starts_with(known)) || text.matches('$').count() < 3 || !clean {
            return Err(SeedError::Together(
                "the hashed password is not of the form that crypt(3) writes, such as $6$SALT$HASH",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The hash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What makes equal passwords have different hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salt(String);

impl Salt {
    /// Takes a salt of 1 to 16 letters, digits, `.` and `/`.
    ///
    /// # Errors
    /// It is another one.
    pub fn new(text: &str) -> Result<Self, SeedError> {
        if !(1..=SALT_MAX).contains(&text.len()) || !text.bytes().all(|byte| DIGITS.contains(&byte)) {
            let reason = "is not 1 to 16 letters, digits, . and /";
            return Err(SeedError::setting("salt", text, reason));
        }
        Ok(Self(text.to_owned()))
    }

    /// The salt.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A salt that comes of `secret` alone, 96 bits of it: random bytes for one that is new each
    /// time, a secret of the machine's own for one that stays and that nobody else has.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        let digest = Sha256::new_with_prefix(b"nelly salt\0").chain_update(secret).finalize();
        let digits = digest.iter().take(SALT_MAX).map(|byte| char::from(DIGITS[usize::from(byte & 63)]));
        Self(digits.collect())
    }
}

/// A digest as crypt(3) of `$6$` writes it: three bytes from its thirds become four digits, the
/// lowest first, while the thirds change places.
fn encoded(digest: &[u8; 64]) -> String {
    let mut text = String::with_capacity(86);
    let mut digits = |mut value: u32, count: usize| {
        for _ in 0..count {
            text.push(char::from(DIGITS[(value & 63) as usize]));
            value >>= 6;
        }
    };
    let (mut a, mut b, mut c) = (0, 21, 42);
    for _ in 0..21 {
        let byte = |place: usize| u32::from(digest[place]);
        digits(byte(a) << 16 | byte(b) << 8 | byte(c), 4);
        (a, b, c) = (b + 1, c + 1, a + 1);
    }
    digits(u32::from(digest[63]), 2);
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn hashes_are_those_of_the_specification() {
        // The vector of https://www.akkadia.org/drepper/SHA-crypt.txt.
        let hash = Password::hash("Hello world!", &Salt::new("saltstring").unwrap()).unwrap();
        let known = "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1";
        assert_eq!(hash.as_str(), known);
        assert_eq!(Password::hashed(known).unwrap(), hash);
        assert!(!format!("{hash:?}").contains('$'));
    }

    #[test]
    fn hashes_are_those_of_openssl() {
        let long = "x".repeat(255);
        for (plain, salt) in
            [("hailhydra", "123456"), ("p", "a"), ("ünïcode $pass", "./AZaz09./AZaz09"), (&*long, "s")]
        {
            let hash = Password::hash(plain, &Salt::new(salt).unwrap()).unwrap();
            let said = Command::new("openssl").args(["passwd", "-6", "-salt", salt, plain]).output().unwrap();
            assert!(said.status.success());
            // Above 256 bytes openssl cuts with a warning; none of these are.
            assert_eq!(hash.as_str(), String::from_utf8(said.stdout).unwrap().trim_end(), "{plain}");
        }
    }

    #[test]
    fn what_is_no_password_or_salt_is_refused() {
        let salt = Salt::new("s").unwrap();
        for bad in ["", "a\n", "a\0b", &"x".repeat(256)] {
            let error = Password::hash(bad, &salt).unwrap_err().to_string();
            assert!(error.contains("1 to 255"), "{error}");
        }
        for bad in ["", "plain", "$6$", "$6$only", "$6$a$b:c", "$6$a$b c", "$7$a$b$c", "$6$a$b\n"] {
            assert!(Password::hashed(bad).is_err(), "{bad:?}");
        }
        assert!(Password::hashed("$y$j9T$abc$def").is_ok());
        for bad in ["", "a$b", "12345678901234567", "a b", "ä"] {
            assert!(Salt::new(bad).is_err(), "{bad:?}");
        }
        let (one, other) = (Salt::of(b"one"), Salt::of(b"other"));
        assert_ne!(one, other);
        assert_eq!(Salt::new(&one.0).unwrap(), Salt::of(b"one"));
    }
}

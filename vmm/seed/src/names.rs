//! Names that a guest's programs take without quoting: of users, hosts and packages.

use crate::error::SeedError;

/// Characters of a user's name at most: what useradd and utmp hold.
const USER_MAX: usize = 32;
/// Characters of a host name at most: `HOST_NAME_MAX` of Linux.
const HOST_MAX: usize = 64;
/// Characters between two dots of a host name at most (RFC 1123, section 2.1).
const LABEL_MAX: usize = 63;

/// The name of a user whom cloud-init makes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserName(String);

impl UserName {
    /// Takes a name of small letters, digits, `_`, `-` and `.`, with a letter or `_` first.
    ///
    /// # Errors
    /// It is another one, or `root`, whom cloud images do not let in.
    pub fn new(name: &str) -> Result<Self, SeedError> {
        let wrong = |reason| Err(SeedError::setting("user", name, reason));
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') || !name.chars().all(rest) {
            return wrong("is not a letter or _, followed by small letters, digits, _, - and .");
        }
        if name.len() > USER_MAX {
            return wrong("has more than 32 characters");
        }
        if name == "root" {
            return wrong("cannot log in to cloud images; another user can, and has sudo");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A host name, with or without a domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// Takes a name as RFC 1123 has it, of at most 64 characters.
    ///
    /// # Errors
    /// It is another one.
    pub fn new(name: &str) -> Result<Self, SeedError> {
        let wrong = |reason| Err(SeedError::setting("host name", name, reason));
        if name.len() > HOST_MAX {
            return wrong("has more than 64 characters");
        }
        let label = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !name.split('.').all(label) {
            return wrong("is not made of letters, digits and inner hyphens, at most 63 between two dots");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A package, as the guest's package manager names it, perhaps with a version: `curl`,
/// `curl=7.88*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageName(String);

impl PackageName {
    /// Takes a name without white space and control characters that is no flag.
    ///
    /// # Errors
    /// It is another one.
    pub fn new(name: &str) -> Result<Self, SeedError> {
        if name.is_empty() || name.starts_with('-') || !name.chars().all(|c| c.is_ascii_graphic()) {
            let reason = "is no name of a package: those have no spaces, and do not begin with -";
            return Err(SeedError::setting("package", name, reason));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

impl std::str::FromStr for MacAddress {
    type Err = SeedError;

    /// Reads `52:54:00:12:34:56`.
    fn from_str(text: &str) -> Result<Self, SeedError> {
        let wrong = || SeedError::setting("address", text, "is not six bytes as 52:54:00:12:34:56");
        let byte = |part: &str| {
            let digits = part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(wrong)
    }
}

impl std::fmt::Display for MacAddress {
    /// In small letters: cloud-init compares it with what sysfs says.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_guests_take() {
        for good in ["debian", "_x", "a.b-c_9", &"a".repeat(32)] {
            assert_eq!(UserName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "Debian", "9a", "-a", "a b", "a:b", "a\n", "ä", "root", "a$", &"a".repeat(33)] {
            let error = UserName::new(bad).unwrap_err().to_string();
            assert!(error.starts_with("user \""), "{bad:?}: {error}");
        }
        for good in ["a", "web-1", "Web.example.org", &"a".repeat(63), "9"] {
            assert_eq!(HostName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "a..b", ".a", "a.", "a_b", "a b", "a\n", &"a".repeat(64), "ä"] {
            assert!(HostName::new(bad).is_err(), "{bad:?}");
        }
        assert!(HostName::new(&["a"; 33].join(".")).unwrap_err().to_string().contains("64"));
        for good in ["curl", "linux-image=6.1*", "g++", "nginx/stable"] {
            assert_eq!(PackageName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-y", "a b", "a\n"] {
            assert!(PackageName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_address_is_read_and_written() {
        let address: MacAddress = "52:54:00:AB:cd:0f".parse().unwrap();
        assert_eq!(address.to_string(), "52:54:00:ab:cd:0f");
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:0f:11",
            "5:54:00:ab:cd:0f",
            "+2:54:00:ab:cd:0f",
            "zz:54:00:ab:cd:0f",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad:?}");
        }
    }
}

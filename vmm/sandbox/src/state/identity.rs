//! Ids and names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A sandbox's id: 32 random bytes, written as 64 hexadecimal digits, 12 of them shown to people.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id([u8; 32]);

impl Id {
    /// A new one from the system's random source.
    ///
    /// # Errors
    /// The system has no random source to give.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        nelly_vmm::sys::random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The twelve digits that people see.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }

    /// A name of two words picked by this id, for sandboxes that were given none.
    #[must_use]
    pub fn name(&self) -> Name {
        let pick = |words: &[&str], byte: u8| words[usize::from(byte) % words.len()].to_owned();
        Name(format!("{}-{}", pick(&ADJECTIVES, self.0[30]), pick(&ANIMALS, self.0[31])))
    }

    /// [`Self::name`] and four digits of this id, for when another sandbox has the two words.
    #[must_use]
    pub fn longer_name(&self) -> Name {
        Name(format!("{}-{:02x}{:02x}", self.name(), self.0[28], self.0[29]))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({})", self.short())
    }
}

/// A text that is no id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid id {0:?}: an id has 64 of the digits 0-9 a-f")]
pub struct IdError(String);

impl FromStr for Id {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
        let bytes = || -> Option<[u8; 32]> {
            let pairs = Some(text.as_bytes()).filter(|bytes| bytes.len() == 64)?.chunks(2);
            pairs.map(pair).collect::<Option<Vec<u8>>>()?.try_into().ok()
        };
        bytes().map(Self).ok_or_else(|| IdError(text.to_owned()))
    }
}

impl TryFrom<String> for Id {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.to_string()
    }
}

const ADJECTIVES: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clear", "crisp", "deft", "eager", "fair", "fleet", "fond", "gentle",
    "glad", "keen", "kind", "lively", "lucid", "merry", "mild", "neat", "nimble", "plain", "proud", "quick",
    "quiet", "ready", "sharp", "sober", "spry", "steady", "swift", "warm",
];

const ANIMALS: [&str; 32] = [
    "badger", "bee", "crane", "crow", "deer", "dove", "eagle", "falcon", "ferret", "finch", "fox", "gull",
    "hare", "hawk", "heron", "horse", "ibis", "kite", "lark", "lynx", "marten", "mole", "newt", "otter",
    "owl", "raven", "robin", "seal", "stoat", "swan", "tern", "wren",
];

/// A sandbox's name, its host name too where none was given: `[a-z0-9][a-z0-9_.-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid name {0:?}: use 1 to 63 of the characters a-z 0-9 _ . - and begin with a letter or digit")]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let first = text.chars().next().is_some_and(plain);
        if first && text.len() <= 63 && text.chars().all(|c| plain(c) || "_.-".contains(c)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// A host name, as Linux has it: 1 to 64 bytes. The bytes are those that names of hosts are written
/// with, letters of both cases, digits, `_`, `.` and `-`; a letter or digit stands first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hostname(String);

impl Hostname {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Name> for Hostname {
    fn from(name: Name) -> Self {
        Self(name.0)
    }
}

/// A host name that is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "invalid host name {0:?}: use 1 to 64 of the characters A-Z a-z 0-9 _ . - and begin with a letter or digit"
)]
pub struct HostnameError(String);

impl FromStr for Hostname {
    type Err = HostnameError;

    fn from_str(text: &str) -> Result<Self, HostnameError> {
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if first && text.len() <= 64 && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(HostnameError(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_name_themselves() {
        let (one, two) = (Id::random().unwrap(), Id::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.to_string().len(), 64);
        assert!(one.to_string().starts_with(&one.short()));
        assert_eq!(one.name().as_str().parse::<Name>().unwrap(), one.name());
        assert_eq!(one.longer_name().as_str().parse::<Name>().unwrap(), one.longer_name());
        assert_eq!(one.to_string().parse(), Ok(one));
        for bad in
            ["", "0", &one.to_string()[1..], &one.to_string()[2..], &format!("{one}00"), &"G".repeat(64)]
        {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_checked() {
        let long = "a".repeat(63);
        for good in ["a", "web-1", "0.x_y", &long] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let longer = "a".repeat(64);
        for bad in ["", "-a", ".a", "A", "a b", "ä", &longer] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names_are_what_linux_takes() {
        let (long, longer) = ("H".repeat(64), "h".repeat(65));
        for good in ["h", "WEB-1.Example.COM", "0_x", &long] {
            assert_eq!(good.parse::<Hostname>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".", "a b", "a\n", "ä", &longer] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad:?}");
        }
        let name: Name = "web".parse().unwrap();
        assert_eq!(Hostname::from(name).to_string(), "web");
    }
}

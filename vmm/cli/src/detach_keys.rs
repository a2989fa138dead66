//! The keys that leave an attached container running.

use std::str::FromStr;

use anyhow::{Result, bail};

/// A sequence of bytes that is watched for in what a user types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them came last.
    seen: usize,
}

impl FromStr for DetachKeys {
    type Err = anyhow::Error;

    /// Docker's spelling: one character, or `ctrl-X`, several separated by commas.
    fn from_str(text: &str) -> Result<Self> {
        let key = |word: &str| match (word.as_bytes(), word.strip_prefix("ctrl-").map(str::as_bytes)) {
            ([key], _) if key.is_ascii() => Ok(*key),
            (_, Some([key @ (b'a'..=b'z' | b'A'..=b'Z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')])) => {
                Ok(key & 0x1f)
            }
            _ => bail!("{word:?} is no key: write one character, or ctrl- and one of a-z @ [ \\ ] ^ _"),
        };
        let keys = text.split(',').map(key).collect::<Result<Vec<u8>>>()?;
        Ok(Self { keys, seen: 0 })
    }
}

/// What of the typed bytes goes to the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    pub(crate) passed: Vec<u8>,
    /// All keys came: whoever types leaves.
    pub(crate) detached: bool,
}

impl DetachKeys {
    /// Sorts what was typed. Keys that may begin the sequence are held back until it is seen that
    /// they do not.
    pub(crate) fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut passed = Vec::new();
        for byte in bytes {
            if *byte == self.keys[self.seen] {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    self.seen = 0;
                    return Typed { passed, detached: true };
                }
                continue;
            }
            passed.extend_from_slice(&self.keys[..self.seen]);
            self.seen = usize::from(*byte == self.keys[0]);
            if self.seen == 0 {
                passed.push(*byte);
            }
        }
        Typed { passed, detached: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spelled_as_under_docker() {
        for (text, keys) in
            [("ctrl-]", &[0x1d][..]), ("ctrl-p,ctrl-q", &[16, 17]), ("a", b"a"), ("ctrl-P,x", &[16, b'x'])]
        {
            assert_eq!(text.parse::<DetachKeys>().unwrap().keys, keys, "{text}");
        }
        for bad in ["", "ctrl-", "ctrl-1", "ab", "a,,b", "ä"] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_whole_sequence_leaves_and_nothing_else_is_lost() {
        let mut keys: DetachKeys = "ctrl-p,ctrl-q".parse().unwrap();
        let passed = |passed: &[u8], detached| Typed { passed: passed.to_vec(), detached };
        assert_eq!(keys.typed(b"ls\x10"), passed(b"ls", false));
        assert_eq!(keys.typed(b"x"), passed(b"\x10x", false));
        assert_eq!(keys.typed(b"\x10\x10"), passed(b"\x10", false));
        assert_eq!(keys.typed(b"\x11rest"), passed(b"", true));
    }
}

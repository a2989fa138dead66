//! Placeholders, and what stands in their place for one host.

use nelly_net::config::{PLACEHOLDER, Secret};

/// What is done with the placeholders of a request.
#[derive(Clone, Debug)]
pub struct Swaps<'a> {
    secrets: &'a [Secret],
    /// Of each, whether it is for the host.
    here: Vec<bool>,
}

/// How a value stands where its placeholder stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Plain,
    /// As a part of a URL: what is no letter, digit, `-`, `.`, `_` or `~` becomes `%XX`.
    Url,
}

/// Secrets by their places: which stand in a request now, and which placeholders were left in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Those that stand there now.
    pub swapped: Vec<usize>,
    /// Those that are for other hosts.
    pub left: Vec<usize>,
}

impl<'a> Swaps<'a> {
    /// For this name, which is in small letters, at this port.
    #[must_use]
    pub fn new(secrets: &'a [Secret], name: &str, port: u16) -> Self {
        let here = |secret: &Secret| secret.hosts.iter().any(|host| host.is_about(name, port));
        Self { secrets, here: secrets.iter().map(here).collect() }
    }

    /// Whether any secret is for the host.
    #[must_use]
    pub fn any(&self) -> bool {
        self.here.contains(&true)
    }

    /// Copies `text` behind `out`, with values for placeholders; `out` is never given more room.
    ///
    /// # Errors
    /// There is not enough room.
    pub fn swap(&self, text: &[u8], form: Form, found: &mut Found, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let mut rest = text;
        while let Some(at) = find(rest, PLACEHOLDER.as_bytes()) {
            put(out, &rest[..at])?;
            rest = &rest[at..];
            let which =
                self.secrets.iter().position(|secret| rest.starts_with(secret.placeholder.as_bytes()));
            let Some(which) = which else {
                put(out, PLACEHOLDER.as_bytes())?;
                rest = &rest[PLACEHOLDER.len()..];
                continue;
            };
            let secret = &self.secrets[which];
            let (place, list) = rest.split_at(secret.placeholder.len());
            let note = if self.here[which] { &mut found.swapped } else { &mut found.left };
            if !note.contains(&which) {
                note.push(which);
            }
            match (self.here[which], form) {
                (false, _) => put(out, place)?,
                (true, Form::Plain) => put(out, secret.value.reveal().as_bytes())?,
                (true, Form::Url) => encode(secret.value.reveal(), out)?,
            }
            rest = list;
        }
        put(out, rest)
    }
}

/// It would need more room than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Copies `text` behind `out`, if there is room: what grows leaves copies of values behind.
///
/// # Errors
/// There is not enough room.
pub fn put(out: &mut Vec<u8>, text: &[u8]) -> Result<(), TooLong> {
    if text.len() > out.capacity() - out.len() {
        return Err(TooLong);
    }
    out.extend_from_slice(text);
    Ok(())
}

/// Whether a placeholder, of whatever secret, may stand in the text.
#[must_use]
pub fn may_have_placeholder(text: &[u8]) -> bool {
    find(text, PLACEHOLDER.as_bytes()).is_some()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn encode(value: &str, out: &mut Vec<u8>) -> Result<(), TooLong> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    value.bytes().try_for_each(|byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            put(out, &[byte])
        } else {
            put(out, &[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use nelly_net::config::SecretValue;

    use super::*;

    /// A secret for a host; the place fills its placeholder.
    pub(crate) fn secret(name: &str, value: &str, host: &str, digit: char) -> Secret {
        Secret {
            name: name.to_owned(),
            placeholder: format!("{PLACEHOLDER}{name}-{}", String::from(digit).repeat(32)),
            value: SecretValue::new(value.to_owned()).unwrap(),
            hosts: vec![host.parse().unwrap()],
        }
    }

    #[test]
    fn placeholders_of_the_host_alone_become_values() {
        let secrets =
            [secret("KEY", "a b/é", "api.example", '1'), secret("KEY2", "other", "*.elsewhere.example", '2')];
        let (key, other) = (&secrets[0].placeholder, &secrets[1].placeholder);
        let cut = &key[..key.len() - 1];
        let text = format!("{key}{key} {other} {cut} {PLACEHOLDER}{key}");
        let swap = |name: &str, port, form| {
            let (mut found, mut out) = (Found::default(), Vec::with_capacity(1000));
            Swaps::new(&secrets, name, port).swap(text.as_bytes(), form, &mut found, &mut out).unwrap();
            (String::from_utf8(out).unwrap(), found)
        };
        let (out, found) = swap("api.example", 443, Form::Plain);
        assert_eq!(out, format!("a b/éa b/é {other} {cut} {PLACEHOLDER}a b/é"));
        assert_eq!(found, Found { swapped: vec![0], left: vec![1] });
        let (out, _) = swap("api.example", 443, Form::Url);
        assert!(out.starts_with("a%20b%2F%C3%A9a%20b"), "{out}");
        let (out, found) = swap("x.elsewhere.example", 443, Form::Plain);
        assert_eq!(out, format!("{key}{key} other {cut} {PLACEHOLDER}{key}"));
        assert_eq!(found, Found { swapped: vec![1], left: vec![0] });
        for (name, port) in [("example", 443), ("api.example", 8443), ("elsewhere.example", 443)] {
            let (out, found) = swap(name, port, Form::Plain);
            assert_eq!((out.as_str(), found.swapped.len()), (text.as_str(), 0));
            assert!(!Swaps::new(&secrets, name, port).any());
        }
    }

    #[test]
    fn what_has_no_room_is_not_given_more() {
        let secrets = [secret("KEY", "a b", "api.example", '1')];
        let text = format!("x{}y", secrets[0].placeholder);
        for (form, len) in [(Form::Plain, 5), (Form::Url, 7)] {
            for room in 0..=len {
                let mut out = Vec::with_capacity(room);
                let (place, most) = (out.as_ptr(), out.capacity());
                let swaps = Swaps::new(&secrets, "api.example", 443);
                let done = swaps.swap(text.as_bytes(), form, &mut Found::default(), &mut out);
                assert_eq!(done, if len <= most { Ok(()) } else { Err(TooLong) });
                assert_eq!((out.as_ptr(), out.capacity()), (place, most));
            }
        }
    }
}

//! The user of `--monitor-user`.
//!
//! `nelly` is one static program, which cannot load what a host asks for its users besides
//! /etc/passwd (LDAP, systemd): such a user is given by its numbers.

use std::fs::File;
use std::io::Read as _;

use anyhow::{Context as _, Result};

use nelly_vmm::config::MonitorUser;

use crate::fail::{Hint, Usage};

/// Where a host lists its own users.
const PASSWD: &str = "/etc/passwd";

/// Longest file of users that is read, in bytes.
const PASSWD_MAX: u64 = 16 << 20;

/// Finds the user that the flag names. Only root can become it.
pub(crate) fn of(word: &str) -> Result<MonitorUser> {
    if !rustix::process::geteuid().is_root() {
        return Err(Hint::error(
            "--monitor-user: only root can make nelly-monitor another user's process",
            "leave it out: nelly-monitor has no more rights than you, and gives up most of them (--confine)",
        ));
    }
    let user = match numbers(word) {
        Some(user) => user,
        None => {
            let mut text = Vec::new();
            File::open(PASSWD)
                .and_then(|file| file.take(PASSWD_MAX).read_to_end(&mut text))
                .with_context(|| format!("--monitor-user {word}: cannot read {PASSWD}"))?;
            listed(word, &String::from_utf8_lossy(&text)).ok_or_else(|| unknown(word))?
        }
    };
    if [user.uid, user.gid].contains(&u32::MAX) {
        return Err(Usage::error(format!("--monitor-user {word}: {} is no user and no group", u32::MAX)));
    }
    if user.uid == 0 || user.gid == 0 {
        return Err(Usage::error(format!(
            "--monitor-user {word}: that is root, or root's group, which it is to be kept from"
        )));
    }
    Ok(user)
}

fn unknown(word: &str) -> anyhow::Error {
    Usage::error(format!(
        "--monitor-user {word}: {PASSWD} has no such user; give its numbers, as in --monitor-user 1000:1000"
    ))
}

/// Reads `UID:GID`.
fn numbers(word: &str) -> Option<MonitorUser> {
    let (uid, gid) = word.split_once(':')?;
    Some(MonitorUser { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

/// Finds a user by name or number among the lines of /etc/passwd (passwd(5)).
fn listed(word: &str, text: &str) -> Option<MonitorUser> {
    let number: Option<u32> = word.parse().ok();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let user = MonitorUser { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
        (name == word && !name.is_empty() || number == Some(user.uid)).then_some(user)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "root:x:0:0:root:/root:/bin/sh\n\
                        nobody:x:65534:65534::/:/bin/false\n\
                        # no line\n\
                        vm:x:990:985::/:\n\
                        vm:x:1:1::/:\n\
                        lost:x:-1:5::/:\n\
                        short:x:7\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        for (word, expected) in [
            ("nobody", Some((65534, 65534))),
            ("vm", Some((990, 985))),
            ("990", Some((990, 985))),
            ("root", Some((0, 0))),
            ("lost", None),
            ("short", None),
            ("7", None),
            ("# no line", None),
            ("", None),
        ] {
            let expected = expected.map(|(uid, gid)| MonitorUser { uid, gid });
            assert_eq!(listed(word, TEXT), expected, "{word}");
        }
    }

    #[test]
    fn numbers_are_taken_as_they_are() {
        assert_eq!(numbers("7:8"), Some(MonitorUser { uid: 7, gid: 8 }));
        for word in ["7", "7:", ":8", "7:8:9", "-1:8", "4294967296:1", "a:b"] {
            assert_eq!(numbers(word), None, "{word}");
        }
    }
}

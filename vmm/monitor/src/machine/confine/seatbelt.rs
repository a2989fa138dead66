//! A profile of macOS' Seatbelt for a machine: what its monitor may still do, as the text that
//! `sandbox_init` takes. Whatever has no rule is denied, and a denied call fails with EPERM.
//!
//! The text is made here on every system, and tested; that the framework runs under it was never
//! seen (docs/macos.md).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::config::{Endpoint, FileSource, MachineConfig};

/// What every monitor may do.
///
/// - The kernel's hypervisor is reached by a user client of its own, which asks for the
///   entitlement.
/// - Sizes of caches and pages, and the system's version, are asked for when they are needed.
/// - A panic ends the process by a signal to itself.
const EVERY: &str = "\
(version 1)
(deny default)
(allow iokit-open (iokit-user-client-class \"AppleHVClient\"))
(allow sysctl-read)
(allow signal (target self))
(allow process-info* (target self))
(allow file-read* file-write-data (literal \"/dev/null\"))
";

/// Terminals, whose modes a console sets.
const TERMINALS: &str = "\
(allow file-read* file-write-data file-ioctl (literal \"/dev/tty\") (regex #\"^/dev/ttys[0-9]+$\"))
";

/// What a machine reaches by a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// Logs, beside which a full one is kept.
    logs: Vec<PathBuf>,
    /// The directory of the sockets of `unix_socket`.
    sockets: Option<PathBuf>,
    /// A console may be a terminal.
    terminal: bool,
}

impl Reached {
    /// By a configuration; `log` gives the path of an open log, and `real` a path without links,
    /// as the system compares it.
    pub(super) fn of(
        config: &MachineConfig,
        log: impl Fn(&FileSource) -> Option<PathBuf>,
        real: impl Fn(&Path) -> io::Result<PathBuf>,
    ) -> io::Result<Self> {
        let mut reached = Self::default();
        for endpoint in [&config.serial, &config.console] {
            match endpoint {
                Endpoint::Log(file) => reached.logs.extend(log(file)),
                Endpoint::Stdio | Endpoint::Pair { .. } => reached.terminal = true,
                Endpoint::None | Endpoint::Stream => {}
            }
        }
        if let Some(path) = config.vsock.as_ref().and_then(|vsock| vsock.unix_socket.as_ref()) {
            let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
            match real(directory) {
                Ok(directory) => reached.sockets = Some(directory),
                // Whoever makes the socket says it better.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(reached)
    }

    /// The profile.
    ///
    /// # Errors
    /// A path cannot be written in one.
    pub(super) fn profile(&self) -> io::Result<Vec<u8>> {
        let mut text = EVERY.as_bytes().to_vec();
        if self.terminal {
            text.extend_from_slice(TERMINALS.as_bytes());
        }
        for log in &self.logs {
            let mut kept = log.clone().into_os_string();
            kept.push(".1");
            // The next file of a full log, and the name that the full one gets.
            text.extend_from_slice(b"(allow file-read* file-write* (literal ");
            string(log, &mut text)?;
            text.extend_from_slice(b") (literal ");
            string(Path::new(&kept), &mut text)?;
            text.extend_from_slice(b"))\n");
        }
        if let Some(directory) = &self.sockets {
            let operations = "(allow file-read-metadata file-write-create file-write-unlink file-write-mode network-bind network-inbound network-outbound (subpath ";
            text.extend_from_slice(operations.as_bytes());
            string(directory, &mut text)?;
            text.extend_from_slice(b"))\n");
        }
        Ok(text)
    }
}

/// A path as a string of a profile. Nothing in it ends the string.
fn string(path: &Path, text: &mut Vec<u8>) -> io::Result<()> {
    let bytes = path.as_os_str().as_bytes();
    if !path.is_absolute() || bytes.iter().any(u8::is_ascii_control) {
        let why =
            format!("{path:?} cannot be written in a profile: a whole path without control characters can");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    text.push(b'"');
    for &byte in bytes {
        if matches!(byte, b'"' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VsockConfig;

    fn config() -> MachineConfig {
        MachineConfig::new(FileSource::Fd(0))
    }

    fn real(path: &Path) -> io::Result<PathBuf> {
        Ok(Path::new("/private").join(path.strip_prefix("/").unwrap()))
    }

    fn profile(config: &MachineConfig, log: &str) -> io::Result<String> {
        let reached = Reached::of(config, |_| Some(log.into()), real)?;
        Ok(String::from_utf8(reached.profile()?).unwrap())
    }

    /// What a profile allows: each rule is a list of words and strings.
    fn rules(profile: &str) -> Vec<Vec<String>> {
        let mut rules = Vec::new();
        let (mut rule, mut word, mut depth, mut quoted, mut escaped) =
            (Vec::new(), String::new(), 0, false, false);
        for letter in profile.chars() {
            match letter {
                _ if escaped => (escaped, word) = (false, word + &letter.to_string()),
                '\\' if quoted => escaped = true,
                '"' => (quoted, word) = (!quoted, word + "\""),
                _ if quoted => word.push(letter),
                '(' | ')' | ' ' | '\n' => {
                    if !word.is_empty() {
                        rule.push(std::mem::take(&mut word));
                    }
                    depth += i32::from(letter == '(') - i32::from(letter == ')');
                    assert!(depth >= 0, "{profile}");
                    if depth == 0 && !rule.is_empty() {
                        rules.push(std::mem::take(&mut rule));
                    }
                }
                _ => word.push(letter),
            }
        }
        assert!(depth == 0 && !quoted && rule.is_empty(), "it is not whole: {profile}");
        rules
    }

    #[test]
    fn a_machine_with_nothing_by_a_name_writes_and_connects_nowhere() {
        let profile = profile(&config(), "/unused").unwrap();
        let rules = rules(&profile);
        assert_eq!(rules[0], ["version", "1"]);
        // The first decision, before any rule.
        assert_eq!(rules[1], ["deny", "default"]);
        assert!(rules[2..].iter().all(|rule| rule[0] == "allow"), "{rules:?}");
        for denied in
            ["process-exec", "process-fork", "network", "mach-lookup", "file-write-create", "subpath", "tty"]
        {
            assert!(!profile.contains(denied), "{denied}: {profile}");
        }
        // What is open for writing by its name is one device.
        let writing: Vec<_> =
            rules.iter().filter(|rule| rule.iter().any(|word| word.contains("write"))).collect();
        assert_eq!(writing, [&["allow", "file-read*", "file-write-data", "literal", "\"/dev/null\""]]);
    }

    #[test]
    fn what_a_machine_reaches_by_a_name_has_a_rule_each() {
        let mut config = config();
        config.serial = Endpoint::Log(FileSource::Fd(3));
        config.console = Endpoint::Stdio;
        config.vsock =
            Some(VsockConfig { unix_socket: Some("/var/run/m/vsock".into()), ..Default::default() });
        let rules = rules(&profile(&config, "/Users/a/x.log").unwrap());
        let log = [
            "allow",
            "file-read*",
            "file-write*",
            "literal",
            "\"/Users/a/x.log\"",
            "literal",
            "\"/Users/a/x.log.1\"",
        ];
        assert!(rules.iter().any(|rule| rule == &log), "{rules:?}");
        let of_sockets = rules.iter().find(|rule| rule.contains(&"network-bind".to_owned())).unwrap();
        assert_eq!(of_sockets.last().unwrap(), "\"/private/var/run/m\"");
        assert!(rules.iter().any(|rule| rule.contains(&"file-ioctl".to_owned())));
        // Nothing of it lets a program run, or reaches a service of the system.
        assert!(
            !rules.iter().flatten().any(|word| word.starts_with("process-exec") || word.starts_with("mach"))
        );
    }

    #[test]
    fn no_path_says_more_than_itself() {
        let mut config = config();
        config.serial = Endpoint::Log(FileSource::Fd(3));
        let odd = r#"/a/") (literal "/") (allow default) \"#;
        let rules = rules(&profile(&config, odd).unwrap());
        let last = rules.last().unwrap();
        assert_eq!(last[4], format!("\"{odd}\""));
        assert_eq!(last[6], format!("\"{odd}.1\""));
        assert_eq!(last.len(), 7);
        for path in ["relative", "/a\n(allow default)", "/a\0"] {
            assert!(profile(&config, path).is_err(), "{path:?}");
        }
        // Bytes that are no text stay as they are.
        let bytes = PathBuf::from(std::ffi::OsStr::from_bytes(b"/a\xff"));
        let reached = Reached { logs: vec![bytes], ..Reached::default() };
        assert!(reached.profile().unwrap().windows(5).any(|part| part == b"\"/a\xff\""));
    }

    #[test]
    fn a_directory_of_sockets_that_is_not_there_has_no_rule() {
        let mut config = config();
        config.vsock = Some(VsockConfig { unix_socket: Some("/nowhere/vsock".into()), ..Default::default() });
        let missing = |_: &Path| Err(io::ErrorKind::NotFound.into());
        assert_eq!(Reached::of(&config, |_| None, missing).unwrap(), Reached::default());
        let denied = |_: &Path| Err(io::ErrorKind::PermissionDenied.into());
        assert!(Reached::of(&config, |_| None, denied).is_err());
    }
}

//! ssh keys: lines that let somebody in, and pairs that are made here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};

use crate::error::SeedError;

/// The kinds of keys that sshd of today takes, and certificates of them (PROTOCOL.certkeys).
const KINDS: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-ed25519-cert-v01@openssh.com",
    "ssh-rsa-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
];
/// Bytes of a line at most: an RSA key of 16384 bits has 2,800.
const LINE_MAX: usize = 16 << 10;

/// A public key in one line, as `~/.ssh/id_ed25519.pub` and `authorized_keys` have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(String);

impl PublicKey {
    /// Reads a file with keys, one a line; empty lines and those after `#` are left out.
    ///
    /// # Errors
    /// A line is no public key: its kind is unknown, its base 64 is none, or says another kind; or
    /// it is a private key; or there is no key at all.
    pub fn lines(text: &str) -> Result<Vec<Self>, SeedError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            keys.push(Self::line(line).map_err(|reason| SeedError::Key { line: index + 1, reason })?);
        }
        if keys.is_empty() {
            return Err(SeedError::Text("has no ssh key".to_owned()));
        }
        Ok(keys)
    }

    fn line(line: &str) -> Result<Self, String> {
        if line.contains("PRIVATE KEY-----") {
            return Err("begins a private key, which stays where it is: the key for a machine is in the file that ends in .pub".to_owned());
        }
        if line.len() > LINE_MAX || line.chars().any(|c| c.is_control() && c != '\t') {
            return Err("is longer than 16 KiB, or has control characters, and is no ssh key".to_owned());
        }
        let mut words = line.split_ascii_whitespace();
        let kind = words.next().expect("the line is not empty");
        if !KINDS.contains(&kind) {
            let kind: String = kind.chars().take(40).collect();
            return Err(format!(
                "begins with {kind:?}, and not with a kind of public keys such as ssh-ed25519 (options before a key are not taken)"
            ));
        }
        let blob = words.next().ok_or_else(|| format!("has no key after {kind}"))?;
        let bytes = BASE64
            .decode(blob)
            .map_err(|_| format!("has what is no base 64 after {kind}; a part may be missing"))?;
        // A key begins with the length of its kind's name, and the name (RFC 4253, section 6.6).
        let inner = bytes.split_at_checked(4).and_then(|(length, rest)| {
            let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
            rest.get(..usize::try_from(length).ok()?).filter(|name| name.len() < rest.len())
        });
        if inner != Some(kind.as_bytes()) {
            return Err(format!("says that it is {kind}, and its key is something else"));
        }
        Ok(Self(line.to_owned()))
    }

    /// The line, without its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same key without its comment, which often says who has it and where.
    #[must_use]
    pub fn bare(&self) -> Self {
        Self(self.without_comment())
    }

    /// Kind and key without the comment, as a line of `known_hosts` has them.
    #[must_use]
    pub fn without_comment(&self) -> String {
        self.0.split_ascii_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }
}

/// A pair of Ed25519 keys.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    private: String,
    public: PublicKey,
}

impl std::fmt::Debug for KeyPair {
    /// Without the private one.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "KeyPair({})", self.public.as_str())
    }
}

impl KeyPair {
    /// The pair that comes of `secret`, which must be random, and known to nobody else.
    ///
    /// # Panics
    /// Never: such a pair can always be written.
    #[must_use]
    pub fn of(secret: &[u8; 32], comment: &str) -> Self {
        let comment: String = comment.chars().filter(|c| !c.is_control()).collect();
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(secret));
        let key = PrivateKey::new(pair, comment).expect("a plain Ed25519 key");
        Self::from_key(&key).expect("what this key is written as")
    }

    /// Reads the file of a private Ed25519 key that has no passphrase.
    ///
    /// # Errors
    /// It is something else.
    pub fn read(private: &str) -> Result<Self, SeedError> {
        let wrong = |error: ssh_key::Error| SeedError::Text(format!("is no private key of OpenSSH: {error}"));
        let key = PrivateKey::from_openssh(private).map_err(wrong)?;
        if key.is_encrypted() || !matches!(key.key_data(), KeypairData::Ed25519(_)) {
            return Err(SeedError::Text("is no private Ed25519 key without a passphrase".to_owned()));
        }
        Self::from_key(&key).map_err(wrong)
    }

    fn from_key(key: &PrivateKey) -> Result<Self, ssh_key::Error> {
        let private = key.to_openssh(LineEnding::LF)?.to_string();
        Ok(Self { private, public: PublicKey(key.public_key().to_openssh()?) })
    }

    /// The private key as a file of OpenSSH, with its last newline.
    #[must_use]
    pub fn private(&self) -> &str {
        &self.private
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    fn ssh_keygen(words: &[&str]) -> String {
        let said = Command::new("ssh-keygen").args(words).output().unwrap();
        assert!(said.status.success(), "{words:?}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap()
    }

    #[test]
    fn a_pair_is_one_that_ssh_keygen_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let pair = KeyPair::of(&[7; 32], "host key\nof web");
        std::fs::write(&path, pair.private()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let public = ssh_keygen(&["-y", "-f", path.to_str().unwrap()]);
        assert_eq!(public.trim_end(), pair.public().as_str());
        assert!(pair.public().as_str().ends_with(" host keyof web"), "{public}");
        assert_eq!(KeyPair::read(pair.private()).unwrap(), pair);
        assert_eq!(KeyPair::of(&[7; 32], "host key\nof web"), pair);
        assert_ne!(KeyPair::of(&[8; 32], "").public(), pair.public());
        let shown = format!("{pair:?}");
        assert!(shown.contains("ssh-ed25519") && !shown.contains("PRIVATE"), "{shown}");
        let (kind, rest) = pair.public().as_str().split_once(' ').unwrap();
        assert!(pair.public().without_comment().starts_with(kind) && rest.contains(' '));
        assert_eq!(pair.public().without_comment().split(' ').count(), 2);
    }

    #[test]
    fn keys_of_ssh_keygen_are_read() {
        let directory = tempfile::tempdir().unwrap();
        for (kind, bits) in [("ed25519", "256"), ("ecdsa", "521"), ("rsa", "2048")] {
            let path = directory.path().join(kind);
            let path = path.to_str().unwrap();
            ssh_keygen(&["-q", "-t", kind, "-b", bits, "-N", "", "-C", "me@home", "-f", path]);
            let text = std::fs::read_to_string(format!("{path}.pub")).unwrap();
            let keys = PublicKey::lines(&format!("# mine\n\n  {text}\r\n{text}")).unwrap();
            assert_eq!(keys.len(), 2);
            assert_eq!(keys[0].as_str(), text.trim_end());
            let private = std::fs::read_to_string(path).unwrap();
            let error = PublicKey::lines(&private).unwrap_err().to_string();
            assert!(error.contains("line 1") && error.contains(".pub"), "{error}");
            assert_eq!(KeyPair::read(&private).is_ok(), kind == "ed25519");
        }
        let path = directory.path().join("locked");
        ssh_keygen(&["-q", "-t", "ed25519", "-N", "secret", "-f", path.to_str().unwrap()]);
        assert!(KeyPair::read(&std::fs::read_to_string(&path).unwrap()).is_err());
    }

    #[test]
    fn lines_that_are_no_keys_are_refused_by_their_number() {
        let good = KeyPair::of(&[1; 32], "a").public().as_str().to_owned();
        let blob = good.split(' ').nth(1).unwrap();
        for (text, line, what) in [
            ("ssh-dss AAAA", 1, "\"ssh-dss\""),
            (&*format!("{good}\nno-pty {good}"), 2, "options"),
            ("ssh-ed25519", 1, "no key after"),
            (&format!("ssh-ed25519 {}", &blob[..blob.len() - 1]), 1, "no base 64"),
            (&format!("\n\nssh-rsa {blob}"), 3, "something else"),
            ("ssh-ed25519 AAAA", 1, "something else"),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", 1, "something else"),
            ("ssh-ed25519 /////w==", 1, "something else"),
            (&format!("{good}\x1b[2J"), 1, "control"),
            (&format!("{good} {}", "x".repeat(LINE_MAX)), 1, "16 KiB"),
        ] {
            let error = PublicKey::lines(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line} ")) && error.contains(what), "{text}: {error}");
        }
        assert_eq!(PublicKey::lines("\n# none\n").unwrap_err().to_string(), "has no ssh key");
    }
}

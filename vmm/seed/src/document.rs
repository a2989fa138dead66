//! Settings as cloud-init reads them.
//!
//! All documents are JSON, which is YAML, too: so no value is ever taken for something else, as
//! `no` or `1e3` are in plain YAML.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use crate::error::SeedError;
use crate::keys::{KeyPair, PublicKey};
use crate::names::{HostName, MacAddress, PackageName, UserName};
use crate::password::Password;

/// What a machine is told at its first start. The default says nothing, and leaves all to the
/// image.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The user who is made, and may become root by sudo without a password; without it, password
    /// and keys are for the user that the image makes by itself, such as `debian` or `ubuntu`.
    pub user: Option<UserName>,
    /// That user's password. Over ssh it is taken only where there are no keys.
    pub password: Option<Password>,
    /// The password is for the console alone, also where there are no keys.
    pub no_ssh_password: bool,
    /// Who may log in as that user.
    pub keys: Vec<PublicKey>,
    /// The key that was made for this machine alone, which may log in, too. Other than with `keys`,
    /// ssh takes a password beside it.
    pub own_key: Option<PublicKey>,
    /// The machine's name.
    pub host_name: Option<HostName>,
    /// Files that are written at the first start.
    pub files: Vec<GuestFile>,
    /// Packages that are installed at the first start, from the guest's own archives.
    pub packages: Vec<PackageName>,
    /// Lines for the guest's shell that run at the end of the first start, as root.
    pub commands: Vec<String>,
    /// Whether root's partition and file system grow to what the disk has.
    pub growth: Growth,
    /// The machine's own key, by which ssh knows it again.
    pub host_key: Option<KeyPair>,
    /// What tells this machine from others with equal settings, such as the path of its disk. It
    /// is not written anywhere: another machine is another instance, and so is a copy of a disk.
    pub machine: String,
    /// Network interfaces that ask for their addresses (DHCP), and no others; when empty, the image
    /// decides.
    pub interfaces: Vec<MacAddress>,
}

/// Whether the root file system grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Growth {
    /// As cloud-init does it unless an image says otherwise.
    #[default]
    Grow,
    /// The disk's further space stays free.
    Stay,
}

/// A file for a guest.
#[derive(Clone, PartialEq, Eq)]
pub struct GuestFile {
    path: String,
    contents: Vec<u8>,
    mode: u32,
}

impl std::fmt::Debug for GuestFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "GuestFile({:?}, {} bytes)", self.path, self.contents.len())
    }
}

impl GuestFile {
    /// A file at `path`, owned by root, whose permissions are the lower nine bits of `mode`.
    ///
    /// # Errors
    /// The path is not absolute, has a component `..`, ends in `/`, or has a control character.
    pub fn new(path: &str, contents: Vec<u8>, mode: u32) -> Result<Self, SeedError> {
        let plain = path.starts_with('/')
            && !path.ends_with('/')
            && path.split('/').all(|part| part != "..")
            && !path.chars().any(char::is_control);
        if !plain {
            let reason = "is no absolute path of a file, without .. and control characters";
            return Err(SeedError::setting("path in the guest", path, reason));
        }
        Ok(Self { path: path.to_owned(), contents, mode: mode & 0o777 })
    }

    fn document(&self) -> Value {
        let mode = format!("{:04o}", self.mode);
        match std::str::from_utf8(&self.contents) {
            Ok(text) => json!({ "path": self.path, "permissions": mode, "content": text }),
            Err(_) => json!({ "path": self.path, "permissions": mode, "encoding": "b64",
                "content": BASE64.encode(&self.contents) }),
        }
    }
}

impl Settings {
    /// Whether something here stands in user data.
    pub(crate) fn in_user_data(&self) -> bool {
        self.user.is_some()
            || self.password.is_some()
            || !(self.keys.is_empty() && self.files.is_empty())
            || !(self.packages.is_empty() && self.commands.is_empty())
            || self.growth != Growth::Grow
            || self.host_key.is_some()
            || self.own_key.is_some()
    }

    /// The user data.
    ///
    /// # Errors
    /// The settings do not go together.
    pub(crate) fn user_data(&self) -> Result<Vec<u8>, SeedError> {
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        self.logins(&mut set)?;
        if self.host_name.is_some() {
            // sudo looks up the host's name, and waits for a network where /etc/hosts lacks it.
            set("manage_etc_hosts", json!("localhost"));
        }
        if let Some(pair) = &self.host_key {
            // With this cloud-init makes no others, so ssh has one key to know the machine by.
            set(
                "ssh_keys",
                json!({ "ed25519_private": pair.private(), "ed25519_public": pair.public().as_str() }),
            );
            set("ssh_deletekeys", json!(true));
        }
        match self.growth {
            Growth::Grow => {
                set("growpart", json!({ "mode": "auto", "devices": ["/"] }));
                set("resize_rootfs", json!(true));
            }
            Growth::Stay => {
                set("growpart", json!({ "mode": "off" }));
                set("resize_rootfs", json!(false));
            }
        }
        if !self.files.is_empty() {
            set("write_files", self.files.iter().map(GuestFile::document).collect());
        }
        if !self.packages.is_empty() {
            set("package_update", json!(true));
            set("packages", self.packages.iter().map(PackageName::as_str).collect());
        }
        if !self.commands.is_empty() {
            set("runcmd", self.commands.iter().map(String::as_str).collect());
        }
        let mut text = b"#cloud-config\n".to_vec();
        text.extend(written(&Value::Object(config)));
        Ok(text)
    }

    /// Users, passwords and keys.
    fn logins(&self, set: &mut dyn FnMut(&str, Value) -> Option<Value>) -> Result<(), SeedError> {
        let keys: Vec<&str> = self.keys.iter().chain(&self.own_key).map(PublicKey::as_str).collect();
        if let Some(user) = &self.user {
            let mut entry = json!({
                "name": user.as_str(),
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": self.password.is_none(),
            });
            if let Some(password) = &self.password {
                // `passwd` counts when the user is made, `hashed_passwd` also when there is one
                // already, since another seed made it.
                entry["passwd"] = json!(password.as_str());
                entry["hashed_passwd"] = json!(password.as_str());
            }
            if !keys.is_empty() {
                entry["ssh_authorized_keys"] = json!(keys);
            }
            set("users", json!([entry]));
        } else {
            if let Some(password) = &self.password {
                if password.as_str().starts_with("$y$") {
                    // cc_set_passwords knows no such hash, and would take it for the password
                    // itself.
                    return Err(SeedError::Together(
                        "a password hashed as $y$ needs a user's name: cloud-init does not take it for the image's own user",
                    ));
                }
                set("password", json!(password.as_str()));
                set("chpasswd", json!({ "expire": false }));
            }
            if !keys.is_empty() {
                set("ssh_authorized_keys", json!(keys));
            }
        }
        if self.password.is_some() {
            set("ssh_pwauth", json!(self.keys.is_empty() && !self.no_ssh_password));
        }
        Ok(())
    }

    /// The configuration of the network, as netplan's version 2, when it is not the image's.
    pub(crate) fn network_config(&self) -> Option<Vec<u8>> {
        if self.interfaces.is_empty() {
            return None;
        }
        // Found by address, whatever the guest calls them.
        let interfaces = self.interfaces.iter().enumerate().map(|(index, address)| {
            let interface = json!({ "match": { "macaddress": address.to_string() }, "dhcp4": true });
            (format!("nelly{index}"), interface)
        });
        let interfaces: Map<String, Value> = interfaces.collect();
        Some(written(&json!({ "version": 2, "ethernets": interfaces })))
    }
}

/// The metadata, with an id that is new when anything else is.
pub(crate) fn meta_data(instance_id: &str, host_name: Option<&HostName>) -> Vec<u8> {
    let mut data = json!({ "instance-id": instance_id });
    if let Some(name) = host_name {
        data["local-hostname"] = json!(name.as_str());
    }
    written(&data)
}

/// JSON that is YAML 1.1 as well: characters that YAML does not have in its texts, or takes for
/// ends of lines, are escaped. None of them lies beyond U+FFFF, where the two write escapes
/// differently.
///
/// Neither is there the word by which cloud-init takes any text for a mail, whose parts it would
/// then look for (`convert_string` in its `user_data.py`).
fn written(value: &Value) -> Vec<u8> {
    let text = serde_json::to_string_pretty(value).expect("maps with texts for keys");
    let mut escaped = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c {
            '\u{7f}'..='\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => escaped.push(c),
        }
    }
    escaped.push('\n');
    without_mail(escaped).into_bytes()
}

/// The text with an escape for the colon of each `MIME-Version:`, which can only stand within a
/// value.
fn without_mail(text: String) -> String {
    const MAIL: &str = "mime-version:";
    let small = text.to_ascii_lowercase();
    let mut rest = 0;
    let mut without = String::new();
    for (at, _) in small.match_indices(MAIL) {
        let colon = at + MAIL.len() - 1;
        without.push_str(&text[rest..colon]);
        without.push_str("\\u003a");
        rest = colon + 1;
    }
    if rest == 0 {
        return text;
    }
    without.push_str(&text[rest..]);
    without
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::password::Salt;

    fn config(settings: &Settings) -> Value {
        let text = settings.user_data().unwrap();
        serde_json::from_slice(text.strip_prefix(b"#cloud-config\n").unwrap()).unwrap()
    }

    fn key() -> KeyPair {
        KeyPair::of(&[3; 32], "me")
    }

    #[test]
    fn a_named_user_has_all_that_logs_in() {
        let settings = Settings {
            user: Some(UserName::new("ada").unwrap()),
            password: Some(Password::hash("secret", &Salt::new("s").unwrap()).unwrap()),
            keys: vec![key().public().clone()],
            host_name: Some(HostName::new("web").unwrap()),
            ..Settings::default()
        };
        let config = config(&settings);
        let user = &config["users"][0];
        assert_eq!(user["name"], "ada");
        assert!(user["passwd"].as_str().unwrap().starts_with("$6$s$"));
        assert_eq!(user["lock_passwd"], false);
        assert_eq!(user["ssh_authorized_keys"][0], key().public().as_str());
        assert_eq!(config["ssh_pwauth"], false, "there is a key");
        assert_eq!(config["manage_etc_hosts"], "localhost");
        assert!(!String::from_utf8(settings.user_data().unwrap()).unwrap().contains("secret"));
    }

    #[test]
    fn without_a_name_it_is_the_user_of_the_image() {
        let password = Password::hash("secret", &Salt::new("s").unwrap()).unwrap();
        let mut settings = Settings { password: Some(password), ..Settings::default() };
        let said = config(&settings);
        assert!(said.get("users").is_none());
        assert_eq!(said["ssh_pwauth"], true);
        let own = Settings { own_key: Some(key().public().clone()), ..settings.clone() };
        let said_of_own = config(&own);
        assert_eq!(said_of_own["ssh_authorized_keys"], json!([key().public().as_str()]));
        assert_eq!(said_of_own["ssh_pwauth"], true, "nobody asked for that key");
        let console = Settings { no_ssh_password: true, ..settings.clone() };
        assert_eq!(config(&console)["ssh_pwauth"], false);
        assert_eq!(said["chpasswd"]["expire"], false);
        assert!(said["password"].as_str().unwrap().starts_with("$6$s$"));
        settings.password = Some(Password::hashed("$y$j9T$a$b").unwrap());
        let error = settings.user_data().unwrap_err().to_string();
        assert!(error.contains("needs a user"), "{error}");
        settings.user = Some(UserName::new("ada").unwrap());
        assert_eq!(config(&settings)["users"][0]["hashed_passwd"], "$y$j9T$a$b");
    }

    #[test]
    fn the_rest_is_said_where_it_was_asked_for() {
        assert_eq!(
            config(&Settings::default()),
            json!({ "growpart": { "mode": "auto", "devices": ["/"] }, "resize_rootfs": true })
        );
        let settings = Settings {
            files: vec![
                GuestFile::new("/etc/motd", "hi\n".into(), 0o100_644).unwrap(),
                GuestFile::new("/bin/x", vec![0xff, 0], 0o755).unwrap(),
            ],
            packages: vec![PackageName::new("curl").unwrap()],
            commands: vec!["echo 'a: b' > /x".to_owned()],
            growth: Growth::Stay,
            host_key: Some(key()),
            interfaces: vec![MacAddress::new([0x52, 0x54, 0, 1, 2, 3])],
            ..Settings::default()
        };
        let said = config(&settings);
        assert_eq!(
            said["write_files"][0],
            json!({ "path": "/etc/motd", "permissions": "0644", "content": "hi\n" })
        );
        assert_eq!(
            said["write_files"][1],
            json!({ "path": "/bin/x", "permissions": "0755", "encoding": "b64", "content": "/wA=" })
        );
        assert_eq!(said["packages"], json!(["curl"]));
        assert_eq!(said["runcmd"], json!(["echo 'a: b' > /x"]));
        assert_eq!(said["growpart"]["mode"], "off");
        assert_eq!(said["resize_rootfs"], false);
        assert_eq!(said["ssh_keys"]["ed25519_private"], key().private());
        let network: Value = serde_json::from_slice(&settings.network_config().unwrap()).unwrap();
        assert_eq!(network["ethernets"]["nelly0"]["match"]["macaddress"], "52:54:00:01:02:03");
        assert_eq!(network["version"], 2);
        for bad in ["", "etc/motd", "/etc/", "/etc/../x", "/a\nb", "/"] {
            assert!(GuestFile::new(bad, Vec::new(), 0).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_json_and_has_no_character_that_yaml_lacks(text in any::<String>(), more in "[\u{7f}-\u{a0}\u{2028}\u{2029}\u{feff}\u{fffe}\u{ffff}\\\\\"]*") {
            let text = format!("{text}MIME-Version: 1.0");
            let settings = Settings { commands: vec![text.clone(), more.clone()], ..Settings::default() };
            let said = settings.user_data().unwrap();
            let json: Value = serde_json::from_slice(&said[b"#cloud-config\n".len()..]).unwrap();
            prop_assert_eq!(&json["runcmd"], &json!([text, more]));
            let said = String::from_utf8(said).unwrap();
            // The characters of YAML 1.1, section 5.1, less its ends of lines but the newline.
            let of_yaml = |c: char| matches!(c, '\n' | ' '..='~' | '\u{a1}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
                && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
            prop_assert!(said.chars().all(of_yaml));
            prop_assert!(!said.to_lowercase().contains("mime-version:"));
        }
    }
}

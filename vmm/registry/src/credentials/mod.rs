//! Names and passwords for registries, where docker and podman keep theirs.

mod helper;
mod store;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use self::helper::Helper;
pub use self::store::{LoginPlace, Logout};
use crate::cancel::Cancel;
use crate::error::RegistryError;
use crate::options::Environment;
use crate::warnings::Warnings;

/// Docker Hub's name in the files of docker.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB: &str = "docker.io";
/// Most bytes of a file with credentials.
const MOST: u64 = 1 << 20;

/// What a registry, or its token server, wants to see.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that its token server gives others for.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never a secret in a log.
        f.write_str(match self {
            Self::Basic { .. } => "Credentials::Basic(..)",
            Self::IdentityToken(_) => "Credentials::IdentityToken(..)",
        })
    }
}

impl Credentials {
    /// `user:password` in base64, as HTTP and docker's files want it.
    pub(crate) fn encode(user: &str, password: &str) -> String {
        STANDARD.encode(format!("{user}:{password}"))
    }
}

/// The files and helper programs with credentials.
#[derive(Clone, Debug)]
pub struct CredentialStore {
    /// Those that are read, the first that knows the registry wins.
    files: Vec<PathBuf>,
    /// The one that `login` writes.
    written: Option<PathBuf>,
    /// Where the helper programs are.
    path: String,
    cancel: Cancel,
    warnings: Warnings,
}

impl CredentialStore {
    /// The places by the environment: `$REGISTRY_AUTH_FILE` alone if it is set, else docker's
    /// `config.json` in `$DOCKER_CONFIG` or `~/.docker`, then podman's `auth.json` in
    /// `$XDG_RUNTIME_DIR/containers` and in `~/.config/containers`.
    #[must_use]
    pub fn new(environment: &Environment, cancel: Cancel) -> Self {
        let path = environment.get("PATH").unwrap_or_default().to_owned();
        let warnings = Warnings::default();
        if let Some(file) = environment.path("REGISTRY_AUTH_FILE") {
            return Self { files: vec![file.clone()], written: Some(file), path, cancel, warnings };
        }
        let home = environment.path("HOME");
        let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let docker = environment
            .path("DOCKER_CONFIG")
            .or_else(|| below_home(".docker"))
            .map(|directory| directory.join("config.json"));
        let podman = [
            environment.path("XDG_RUNTIME_DIR"),
            environment.path("XDG_CONFIG_HOME").or_else(|| below_home(".config")),
        ];
        let podman = podman.into_iter().flatten().map(|directory| directory.join("containers/auth.json"));
        // First what `login` writes, so that it counts.
        let files = docker.iter().cloned().chain(podman).collect();
        Self { files, written: docker, path, cancel, warnings }
    }

    /// The same with other ears for its warnings.
    pub(crate) fn warning(self, warnings: Warnings) -> Self {
        Self { warnings, ..self }
    }

    /// Credentials for the repository `path` of the registry `host`; `None` if there are none.
    /// A helper program that is named and not installed knows nothing: most images need no login.
    ///
    /// # Errors
    /// [`RegistryError::Credentials`]: a file cannot be read or understood, or a helper program
    /// fails.
    pub fn find(&self, host: &str, path: &str) -> Result<Option<Credentials>, RegistryError> {
        for file in &self.files {
            let Some(config) = read(file)? else { continue };
            if let Some(helper) = self.helper_of(&config, host, file)? {
                if let Some(program) = helper.missing() {
                    self.warnings.add(program, || {
                        let file = file.display();
                        format!("{file} names {program} for {host}, which is not in PATH: going on without credentials")
                    });
                    continue;
                }
                if let Some(found) = helper.get(&server(host), &self.cancel)? {
                    return Ok(Some(found));
                }
                continue;
            }
            if let Some(entry) = entry(&config, host, path) {
                let found = parse_entry(entry).map_err(|problem| unusable(file, problem))?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// The helper program for the registry, if the file names one.
    fn helper_of(
        &self,
        config: &Map<String, Value>,
        host: &str,
        file: &Path,
    ) -> Result<Option<Helper>, RegistryError> {
        let of_host = config.get("credHelpers").and_then(Value::as_object).and_then(|helpers| {
            helpers.iter().find(|(key, _)| same_host(key, host)).and_then(|(_, name)| name.as_str())
        });
        let name = of_host.or_else(|| config.get("credsStore").and_then(Value::as_str));
        match name.filter(|name| !name.is_empty()) {
            Some(name) => Helper::named(name, &self.path)
                .map(Some)
                .ok_or_else(|| unusable(file, format!("{name:?} is not the name of a credential helper"))),
            None => Ok(None),
        }
    }
}

fn unusable(path: &Path, problem: impl Into<String>) -> RegistryError {
    RegistryError::Credentials { path: path.to_owned(), problem: problem.into() }
}

/// The name of a registry in docker's files and for its helpers.
fn server(host: &str) -> String {
    if host == HUB { HUB_KEY.to_owned() } else { host.to_owned() }
}

/// A file with credentials; `None` if there is none.
fn read(path: &Path) -> Result<Option<Map<String, Value>>, RegistryError> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unusable(path, error.to_string())),
    }
    if text.len() as u64 > MOST {
        return Err(unusable(path, format!("it has more than {MOST} bytes")));
    }
    if text.trim_ascii().is_empty() {
        return Ok(Some(Map::new()));
    }
    // An error of the parser could quote a secret.
    match serde_json::from_slice(&text) {
        Ok(Value::Object(config)) => Ok(Some(config)),
        Ok(_) => Err(unusable(path, "it is no JSON object")),
        Err(error) => Err(unusable(
            path,
            format!("it is no valid JSON, see line {}, column {}", error.line(), error.column()),
        )),
    }
}

/// A key without the scheme and the path of an API that old versions of docker wrote.
fn bare(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let rest = rest.trim_end_matches('/');
    rest.strip_suffix("/v1").or_else(|| rest.strip_suffix("/v2")).unwrap_or(rest)
}

/// Whether a key of a file means the registry.
fn same_host(key: &str, host: &str) -> bool {
    let key = bare(key);
    key == host || (host == HUB && (key == "index.docker.io" || key == "registry-1.docker.io"))
}

/// The entry for a repository: that of the longest part of its name, in the end the host's.
fn entry<'a>(config: &'a Map<String, Value>, host: &str, path: &str) -> Option<&'a Value> {
    let entries = config.get("auths")?.as_object()?;
    let mut name = format!("{host}/{path}");
    while name.len() > host.len() + 1 {
        if let Some(entry) = entries.get(&name) {
            return Some(entry);
        }
        name.truncate(name.rfind('/')?);
    }
    entries.get(host).or_else(|| entries.iter().find(|(key, _)| same_host(key, host)).map(|(_, entry)| entry))
}

/// What an entry says; `None` if it is empty.
fn parse_entry(entry: &Value) -> Result<Option<Credentials>, &'static str> {
    let word = |name: &str| entry.get(name).and_then(Value::as_str).filter(|word| !word.is_empty());
    if let Some(token) = word("identitytoken") {
        return Ok(Some(Credentials::IdentityToken(token.to_owned())));
    }
    if let (Some(user), Some(password)) = (word("username"), word("password")) {
        return Ok(Some(Credentials::Basic { user: user.to_owned(), password: password.to_owned() }));
    }
    let Some(auth) = word("auth") else { return Ok(None) };
    const BAD: &str = "an `auth` in it is not base64 of NAME:PASSWORD";
    let text = STANDARD.decode(auth.trim()).map_err(|_secret| BAD)?;
    let text = String::from_utf8(text).map_err(|_secret| BAD)?;
    let (user, password) = text.split_once(':').ok_or(BAD)?;
    let password = password.trim_end_matches('\0');
    Ok(Some(Credentials::Basic { user: user.to_owned(), password: password.to_owned() }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn basic(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic { user: user.into(), password: password.into() })
    }

    fn store(directory: &Path, text: &str) -> CredentialStore {
        let file = directory.join("config.json");
        std::fs::write(&file, text).unwrap();
        CredentialStore {
            files: vec![file.clone()],
            written: Some(file),
            path: String::new(),
            cancel: Cancel::new(),
            warnings: Warnings::default(),
        }
    }

    #[test]
    fn entries_by_host_by_repository_and_in_docker_s_old_forms() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOnB3"},
            "r.example":{"auth":"aG9zdDpwOnc="},
            "r.example/team":{"username":"team","password":"t"},
            "r.example/team/app":{"identitytoken":"tok"},
            "http://old.example/v2/":{"auth":"b2xkOnB3"},
            "empty.example":{}}}"#;
        let store = store(directory.path(), text);
        let token = Some(Credentials::IdentityToken("tok".into()));
        for (host, path, want) in [
            ("docker.io", "library/alpine", basic("hub", "pw")),
            ("r.example", "other/app", basic("host", "p:w")),
            ("r.example", "team/web", basic("team", "t")),
            ("r.example", "team/app", token),
            ("old.example", "a", basic("old", "pw")),
            ("empty.example", "a", None),
            ("x.example", "a", None),
        ] {
            assert_eq!(store.find(host, path).unwrap(), want, "{host}/{path}");
        }
        assert!(!format!("{:?}", basic("u", "geheim")).contains("geheim"));
    }

    #[test]
    fn files_that_are_none_are_named_without_their_secrets() {
        let directory = tempfile::tempdir().unwrap();
        for text in [
            "[\"geheim\"]",
            "{\"auths\":{\"h\":{\"auth\":\"geheim!\"}}}",
            "{\"auths\":{\"h\":{\"auth\":\"geheim\"",
            "{\"auths\":{\"h\":{\"auth\":\"Z2VoZWlt\"}}}",
            "{\"credsStore\":\"../geheim\"}",
        ] {
            let message = store(directory.path(), text).find("h", "a").unwrap_err().to_string();
            assert!(message.contains("config.json"), "{message}");
            assert!(!message.contains("geheim") || text.contains("credsStore"), "{message}");
        }
        assert_eq!(store(directory.path(), " \n").find("h", "a").unwrap(), None);
        let gone = CredentialStore {
            files: vec!["/none/x".into()],
            written: None,
            path: String::new(),
            cancel: Cancel::new(),
            warnings: Warnings::default(),
        };
        assert_eq!(gone.find("h", "a").unwrap(), None);
    }

    #[test]
    fn what_login_writes_comes_before_podman_s_places() {
        let environment = |list: &'static [(&str, &str)]| {
            let get = move |name: &str| {
                list.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            CredentialStore::new(&Environment::new(get), Cancel::new())
        };
        let paths = |store: &CredentialStore| -> Vec<String> {
            store.files.iter().map(|path| path.display().to_string()).collect()
        };
        let all = environment(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        assert_eq!(
            paths(&all),
            ["/h/.docker/config.json", "/run/user/1/containers/auth.json", "/h/.config/containers/auth.json"]
        );
        assert_eq!(all.written, Some("/h/.docker/config.json".into()));
        let one = environment(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a.json")]);
        assert_eq!((paths(&one), one.written), (vec!["/a.json".to_owned()], Some("/a.json".into())));
        assert!(paths(&environment(&[])).is_empty());
    }

    #[test]
    fn helpers_are_asked_without_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let helper = directory.path().join("docker-credential-test");
        let script = "#!/bin/sh\nread server\ncase $1:$server in\n\
            get:r.example) echo '{\"ServerURL\":\"x\",\"Username\":\"u\",\"Secret\":\"s\"}';;\n\
            get:t.example) echo '{\"Username\":\"<token>\",\"Secret\":\"tok\"}';;\n\
            get:none.example) echo credentials not found in native keychain; exit 1;;\n\
            get:https://index.docker.io/v1/) echo '{\"Username\":\"hub\",\"Secret\":\"s\"}';;\n\
            get:junk.example) echo geheim;;\n\
            *) echo locked >&2; exit 1;; esac\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let helper = Helper::at(helper);
        let get = |host: &str| helper.get(&server(host), &Cancel::new());
        assert_eq!(get("r.example").unwrap(), basic("u", "s"));
        assert_eq!(get("t.example").unwrap(), Some(Credentials::IdentityToken("tok".into())));
        assert_eq!(get("docker.io").unwrap(), basic("hub", "s"));
        assert_eq!(get("none.example").unwrap(), None);
        let junk = get("junk.example").unwrap_err().to_string();
        assert!(junk.contains("docker-credential-test") && !junk.contains("geheim"), "{junk}");
        assert!(get("other.example").unwrap_err().to_string().contains("locked"));
        let missing = store(directory.path(), "{\"credHelpers\":{\"h\":\"nelly-none\"}}");
        assert_eq!(missing.find("h", "a").unwrap(), None);
        assert_eq!(missing.find("h", "b").unwrap(), None);
        let warnings = missing.warnings.take();
        assert!(warnings[0].contains("docker-credential-nelly-none for h"), "{warnings:?}");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        // A login would go to a place that nobody asked for.
        let message = missing.login("h", "u", "p").unwrap_err().to_string();
        assert!(message.contains("docker-credential-nelly-none"), "{message}");
        assert_eq!(missing.find("other", "a").unwrap(), None);
    }
}

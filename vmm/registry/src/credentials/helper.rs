//! Credential helpers: programs that keep secrets in a keyring.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{Credentials, unusable};
use crate::cancel::Cancel;
use crate::error::{RegistryError, clean};
use crate::program::{self, Output};

/// A keyring may ask its user.
const MOST: Duration = Duration::from_secs(60);
/// The user name with which a helper marks an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers say when they know nothing.
const NOTHING: &str = "credentials not found";

/// A program `docker-credential-NAME`.
pub(super) struct Helper(PathBuf);

impl Helper {
    /// The helper of a name in a file, in the directories of `path`; `None` if it could be another
    /// program.
    pub(super) fn named(name: &str, path: &str) -> Option<Self> {
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !name.chars().all(letter) {
            return None;
        }
        let program = format!("docker-credential-{name}");
        let places = path.split(':').filter(|place| place.starts_with('/'));
        let found = places.map(|place| Path::new(place).join(&program)).find(|file| file.is_file());
        Some(Self(found.unwrap_or_else(|| program.into())))
    }

    #[cfg(test)]
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The program's name, if it is not installed.
    pub(super) fn missing(&self) -> Option<&str> {
        if self.0.is_absolute() { None } else { self.0.to_str() }
    }

    fn fails(&self, problem: impl Into<String>) -> RegistryError {
        unusable(&self.0, problem)
    }

    fn run(&self, verb: &str, input: &str, cancel: &Cancel) -> Result<Output, RegistryError> {
        if !self.0.is_absolute() {
            return Err(self.fails("this credential helper is not in PATH"));
        }
        program::run(self.0.as_os_str(), &[verb], input.as_bytes(), MOST, cancel).map_err(|error| match error
            .kind()
        {
            io::ErrorKind::Interrupted => RegistryError::Cancelled,
            io::ErrorKind::NotFound => self.fails("this credential helper is not in PATH"),
            _ => self.fails(error.to_string()),
        })
    }

    /// What it knows of a server.
    pub(super) fn get(&self, server: &str, cancel: &Cancel) -> Result<Option<Credentials>, RegistryError> {
        let output = self.run("get", server, cancel)?;
        if !output.success {
            return if knows_nothing(&output) { Ok(None) } else { Err(self.fails(words(&output))) };
        }
        let bad = || self.fails("its answer is not JSON with Username and Secret");
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|_secret| bad())?;
        let word = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        let (user, secret) = word("Username").zip(word("Secret")).ok_or_else(bad)?;
        Ok(Some(if user == TOKEN_USER {
            Credentials::IdentityToken(secret)
        } else {
            Credentials::Basic { user, password: secret }
        }))
    }

    /// Lets it keep a name and a password.
    pub(super) fn store(
        &self,
        server: &str,
        user: &str,
        password: &str,
        cancel: &Cancel,
    ) -> Result<(), RegistryError> {
        let input = serde_json::json!({ "ServerURL": server, "Username": user, "Secret": password });
        let output = self.run("store", &input.to_string(), cancel)?;
        if output.success { Ok(()) } else { Err(self.fails(words(&output))) }
    }

    /// Lets it forget a server. Whether it knew it.
    pub(super) fn erase(&self, server: &str, cancel: &Cancel) -> Result<bool, RegistryError> {
        let output = self.run("erase", server, cancel)?;
        match output.success {
            true => Ok(true),
            false if knows_nothing(&output) => Ok(false),
            false => Err(self.fails(words(&output))),
        }
    }
}

/// Helpers say so on standard output, some on standard error.
fn knows_nothing(output: &Output) -> bool {
    [&output.stdout, &output.stderr].into_iter().any(|said| String::from_utf8_lossy(said).contains(NOTHING))
}

/// Why it failed, in its own words.
fn words(output: &Output) -> String {
    let said = if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
    format!("it failed: {}", clean(&String::from_utf8_lossy(said)))
}

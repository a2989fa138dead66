//! How the command fails: the message on stderr, the exit code of the verb.

use std::process::ExitCode;

use anyhow::Error;
use serde_json::json;

/// Prints `error` as a chain on stderr, or as one JSON object {code, message, hint}.
pub(crate) fn report(error: &Error, json: bool, code: u8) -> ExitCode {
    let message = chain(error);
    if json {
        let object = json!({ "schema": 1, "code": code, "message": message, "hint": hint(error) });
        eprintln!("{object}");
    } else {
        eprintln!("nelly: {message}");
        if let Some(hint) = hint(error) {
            eprintln!("  hint: {hint}");
        }
    }
    ExitCode::from(code)
}

/// The chain in one line, without a cause that its parent's sentence ends with already.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// What to do, carried in the chain as a [`Hint`].
fn hint(error: &Error) -> Option<&str> {
    error.downcast_ref::<Hint>().map(|hint| hint.hint.as_str())
}

/// An error's sentence with what to do about it.
#[derive(Debug)]
pub(crate) struct Hint {
    message: String,
    hint: String,
}

impl Hint {
    /// An error that says `message` and advises `hint`.
    pub(crate) fn error(message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::new(Self { message: message.into(), hint: hint.into() })
    }
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hint {}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let error = anyhow::anyhow!("no such file").context("cannot open /k: no such file").context("boot");
        assert_eq!(chain(&error), "boot: cannot open /k: no such file");
        let hinted = Err::<(), _>(Hint::error("no KVM", "modprobe kvm")).context("doctor").unwrap_err();
        assert_eq!(hint(&hinted), Some("modprobe kvm"));
    }
}

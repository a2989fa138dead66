//! How the command fails: the message on stderr, the exit code of the verb.

use std::process::ExitCode;

use anyhow::{Context, Error};
use nelly_image::{ImageError, LocalError};
use nelly_sandbox::instance::SandboxError;
use nelly_sandbox::spec::SpecError;
use nelly_sandbox::state::outcome;
use nelly_vmm::text;
use serde_json::json;

use crate::out;

/// Prints `error` as a chain on stderr, or as one JSON object {code, message, hint}.
pub(crate) fn report(error: &Error, json: bool, code: u8) -> ExitCode {
    let message = text::chain(error.as_ref());
    if json {
        let object = json!({ "schema": 1, "code": code, "message": message, "hint": hint(error) });
        out::note(format_args!("{}\n", text::json(&object.to_string())));
    } else {
        out::message(message);
        if let Some(console) = console(error) {
            out::note(format_args!("the last lines on the guest's console:\n{console}\n"));
        }
        if let Some(hint) = hint(error) {
            out::note(format_args!("  hint: {hint}\n"));
        }
    }
    ExitCode::from(code)
}

/// The exit code of an error that has one of its own, whatever the verb.
pub(crate) fn code(error: &Error) -> Option<u8> {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return Some(refused.code);
    }
    matches!(error.downcast_ref(), Some(SpecError::EmptyProgram)).then_some(outcome::NOT_FOUND)
}

/// Whether the error is one of how the command was used: see [`Usage`].
pub(crate) fn is_usage(error: &Error) -> bool {
    error.downcast_ref::<Usage>().is_some()
}

/// What the guest said last, where that may explain the error.
fn console(error: &Error) -> Option<&str> {
    match error.downcast_ref() {
        Some(SandboxError::Guest { console, .. }) if !console.is_empty() => Some(console),
        _ => None,
    }
}

/// What to do, carried in the chain as a [`Hint`].
fn hint(error: &Error) -> Option<&str> {
    if let Some(hint) = error.downcast_ref::<Hint>() {
        return Some(&hint.hint);
    }
    let missing = matches!(error.downcast_ref(), Some(ImageError::NotStored(_)))
        || matches!(error.downcast_ref(), Some(LocalError::NoImage(_)));
    missing.then_some("`nelly image pull NAME` fetches an image, `nelly image load` reads an archive, `nelly image ls` lists what is there")
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

/// What was wrong in how the command was used: a sentence, or as a context the name of the flag
/// whose value is refused. The exit code is then that of usage errors.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl Usage {
    /// An error of this sentence.
    pub(crate) fn error(sentence: impl Into<String>) -> Error {
        Error::new(Self(sentence.into()))
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Marks what a flag's value was refused for.
pub(crate) trait OfFlag<T> {
    /// The same, as a usage error that begins with the flag's name.
    ///
    /// # Errors
    /// As `self`.
    fn of_flag(self, flag: &str) -> anyhow::Result<T>;
}

impl<T, E> OfFlag<T> for Result<T, E>
where
    Self: Context<T, E>,
{
    fn of_flag(self, flag: &str) -> anyhow::Result<T> {
        self.with_context(|| Usage(flag.to_owned()))
    }
}

/// A failure with an exit code of its own, such as a container that did not start, or a prompt that
/// was left by Ctrl-C.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_value_is_a_usage_error_however_deep() {
        let refused = "x".parse::<u8>().of_flag("--time").context("stop").unwrap_err();
        assert!(is_usage(&refused));
        assert_eq!(format!("{refused:#}"), "stop: --time: invalid digit found in string");
        assert!(is_usage(&Usage::error("no COMMAND")) && !is_usage(&anyhow::anyhow!("no KVM")));
    }

    #[test]
    fn a_hint_and_a_console_are_found_below_what_was_tried() {
        let hinted = Err::<(), _>(Hint::error("no KVM", "modprobe kvm")).context("doctor").unwrap_err();
        assert_eq!((hint(&hinted), console(&hinted)), (Some("modprobe kvm"), None));
        let guest = SandboxError::Guest { what: "the guest panicked".into(), console: "Oops".into() };
        let guest = Err::<(), _>(guest).context("run").unwrap_err();
        assert_eq!((hint(&guest), console(&guest)), (None, Some("Oops")));
        let empty = Err::<(), _>(SpecError::EmptyProgram).context("run").unwrap_err();
        assert_eq!((code(&empty), code(&guest)), (Some(127), None));
    }
}

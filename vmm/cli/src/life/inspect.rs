//! `nelly inspect`: all that is known of sandboxes.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nelly_sandbox::state::{Condition, SandboxDir};
use nelly_vmm::text;
use serde_json::{Value, json};

use super::args::NamesArgs;
use super::sandboxes;
use crate::context::Context;
use crate::out;

/// Prints an array with an object for each of the named, in their order. One that cannot be shown
/// is told on standard error.
pub(crate) fn inspect(args: &NamesArgs, context: &Context) -> Result<ExitCode> {
    let sandboxes = sandboxes(context)?;
    let (mut objects, mut failed) = (Vec::new(), false);
    for word in &args.names {
        match sandboxes.find(word).map_err(anyhow::Error::from).and_then(|sandbox| object(&sandbox)) {
            Ok(object) => objects.push(object),
            Err(error) => {
                out::message(text::chain(error.as_ref()));
                failed = true;
            }
        }
    }
    out::json(format_args!("{:#}", Value::Array(objects)))?;
    Ok(ExitCode::from(u8::from(failed)))
}

/// The record of a sandbox, and beside it what is the case.
fn object(sandbox: &SandboxDir) -> Result<Value> {
    let (record, state, condition) = (sandbox.record()?, sandbox.state()?, sandbox.condition()?);
    let mut object = serde_json::to_value(&record).context("cannot show the record")?;
    object["schema"] = json!(1);
    object["status"] = json!(condition.word());
    object["unclean"] = json!(condition == Condition::Unclean);
    object["directory"] = json!(sandbox.dir().path());
    object["state"] = serde_json::to_value(&state).context("cannot show the state")?;
    Ok(object)
}

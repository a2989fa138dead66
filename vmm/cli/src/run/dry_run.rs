//! `nelly run --dry-run`: what would be started, as JSON. What the real run refuses before there is
//! a machine is refused here, too; what only the guest knows is said to be unknown.

use std::process::ExitCode;

use anyhow::Result;
use nelly_image::{ImageError, Reference, Store};
use nelly_sandbox::instance::relays;
use nelly_sandbox::spec::oci;
use nelly_vmm::config::FileSource;
use serde_json::{Value, json};

use super::detached::{self, KeptOptions};
use super::plan::{PreparedRun, RunOptions, machine_by_path, plan};
use crate::args::RunArgs;
use crate::context::Context;
use crate::fail::Hint;
use crate::registry::args::PullPolicy;
use crate::{network, out};

/// Prints the configuration.
pub(super) fn dry_run(
    args: &RunArgs,
    mut options: RunOptions,
    kept: Option<&KeptOptions>,
    (store, reference): (&Store, &Reference),
    context: &Context,
) -> Result<ExitCode> {
    let planned = match store.plan(reference) {
        Err(error @ ImageError::NotStored(_)) => return Err(not_stored(&error, reference, args.pull)),
        planned => planned?,
    };
    if args.name.is_some() {
        detached::name_is_free(&options.name, context)?;
    }
    // What is given is kept for nobody.
    drop(network::assign(&mut options.network, context)?);
    let plan = plan(args, options, &planned.config)?;
    if let Some(kept) = kept {
        detached::check(args, kept, &plan, &planned.raw_config)?;
    }
    relays::check(&plan.container.options.relays)?;
    let disk = match planned.disk_paths {
        paths if paths.is_empty() => vec![FileSource::Fd(0)],
        paths => paths.into_iter().map(FileSource::Path).collect(),
    };
    let config = machine_by_path(&plan, disk).config()?;
    let shown: Value = serde_json::from_str(&config.to_json())?;
    let mut spec = serde_json::to_value(oci::container(&plan.container))?;
    let unknown = unknown(&plan, &mut spec);
    let object = json!({ "schema": 1, "id": plan.options.id.to_string(), "name": plan.options.name.as_str(), "image": reference.to_string(),
        "image_digest": planned.digest.to_string(), "image_cached": planned.cached, "machine": shown, "container": spec,
        "network": plan.options.network, "relays": plan.container.options.relays, "unknown": unknown });
    out::json(format_args!("{object:#}"))?;
    Ok(ExitCode::SUCCESS)
}

fn not_stored(error: &ImageError, reference: &Reference, pull: PullPolicy) -> anyhow::Error {
    let hint = match pull {
        PullPolicy::Never => format!("`nelly image pull {reference}` fetches it"),
        PullPolicy::Missing | PullPolicy::Always => {
            format!("`nelly image pull {reference}` fetches it, as nelly run without --dry-run does")
        }
    };
    Hint::error(format!("{error}, and --dry-run fetches nothing"), hint)
}

/// What only the guest knows, each with its place in the configuration and the reason. The numbers
/// of the user are filled in where they are known.
fn unknown(plan: &PreparedRun, spec: &mut Value) -> Vec<Value> {
    let mut unknown = Vec::new();
    let mut say = |key: String, why: &str| unknown.push(json!({ "key": key, "why": why }));
    let user = &mut spec["process"]["user"];
    let (name, group) =
        plan.container.process.user.split_once(':').unwrap_or((&plan.container.process.user, ""));
    let number =
        |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    (user["uid"], user["gid"]) = (json!(number(name)), json!(number(group)));
    if number(name).is_none() {
        user["username"] = json!(name);
        say(
            "container.process.user.uid".into(),
            "the number of a name is in /etc/passwd of the image, which is read in the guest",
        );
    }
    if group.is_empty() && name == "0" {
        user["gid"] = json!(0);
    } else if group.is_empty() {
        say(
            "container.process.user.gid".into(),
            "the group of a user is in /etc/passwd of the image, which is read in the guest",
        );
    } else if number(group).is_none() {
        user["groupname"] = json!(group);
        say(
            "container.process.user.gid".into(),
            "the number of a name is in /etc/group of the image, which is read in the guest",
        );
    }
    for group in plan.container.process.rights.groups.iter().filter(|group| number(group).is_none()) {
        let why = format!(
            "the number of the group {group} is in /etc/group of the image, which is read in the guest"
        );
        say("container.process.user.additionalGids".into(), &why);
    }
    for name in plan.container.options.sysctls.keys() {
        say(
            format!("container.linux.sysctl.{name}"),
            "the guest's kernel says whether it has this parameter and takes the value",
        );
    }
    for tmpfs in &plan.container.tmpfs {
        let sized = |option: &String| option.starts_with("size=") || option.starts_with("nr_blocks=");
        if !tmpfs.options.iter().any(sized) {
            say(
                format!("container.mounts.{}", tmpfs.path),
                "its size is a part of the guest's memory, which the guest shares out",
            );
        }
    }
    unknown
}

//! `nelly image inspect` and `nelly image history`.

use std::process::ExitCode;

use anyhow::Result;
use nelly_image::{ImagePlan, RawConfig};
use nelly_vmm::text;
use serde_json::{Value, json};

use super::args::{HistoryArgs, InspectArgs};
use super::{local, reference, size, store};
use crate::assets::Assets;
use crate::context::Context;
use crate::{out, table};

/// `nelly image inspect`.
pub(super) fn inspect(args: &InspectArgs, context: &Context) -> Result<ExitCode> {
    let (local, store) = (local(context)?, store(context)?);
    let runs_with = runs_with(context);
    let mut shown = Vec::new();
    for word in &args.images {
        let reference = reference(&local, word)?;
        let plan = store.plan(&reference)?;
        let names: Vec<String> = match local.look_up(word) {
            Ok(found) => {
                let digest = found.image.descriptor.digest;
                let named = local.list()?.into_iter().filter(|image| image.descriptor.digest == digest);
                named.filter_map(|image| image.name).map(|name| name.familiar()).collect()
            }
            Err(_) => Vec::new(),
        };
        shown.push(object(&reference.to_string(), &names, &plan, &runs_with));
    }
    if args.json {
        out::json(format_args!("{:#}", Value::Array(shown)))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (index, image) in shown.iter().enumerate() {
        if index > 0 {
            out::line("")?;
        }
        for line in lines(image) {
            // A value with a line break must not look like two.
            out::line(text::line(&line))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The kernel and the agent that `nelly run` would start here.
fn runs_with(context: &Context) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    match Assets::find(&context.search, &context.settings, None, None) {
        Ok(assets) => json!({ "kernel": assets.kernel.path, "kernel_source": assets.kernel_source,
            "initramfs": assets.initrd.path, "build_id": assets.build_id, "agent_version": version }),
        Err(_) => Value::Null,
    }
}

fn object(id: &str, names: &[String], plan: &ImagePlan, runs_with: &Value) -> Value {
    let config = plan.config.config().clone().unwrap_or_default();
    let layers: Vec<Value> = plan
        .layers
        .iter()
        .map(|layer| {
            json!({ "digest": layer.digest.map(|digest| digest.to_string()),
                "diff_id": layer.diff_id.to_string(), "stored_bytes": layer.size })
        })
        .collect();
    json!({
        "schema": 1,
        "id": id,
        "names": names,
        "digest": plan.digest.to_string(),
        "created": plan.config.created(),
        "author": plan.config.author(),
        "os": plan.config.os().to_string(),
        "architecture": plan.config.architecture().to_string(),
        "config": {
            "entrypoint": config.entrypoint(),
            "cmd": config.cmd(),
            "env": config.env(),
            "user": config.user(),
            "working_dir": config.working_dir(),
            "stop_signal": config.stop_signal(),
            "exposed_ports": config.exposed_ports(),
            "volumes": config.volumes(),
            "labels": config.labels(),
            "healthcheck": healthcheck(&plan.raw_config),
        },
        "layers": layers,
        "layers_bytes": plan.layers.iter().map(|layer| layer.size).sum::<u64>(),
        "cached": plan.cached,
        "cache_paths": plan.disk_paths,
        "runs_with": runs_with,
    })
}

/// The image's health check as it is written; one that cannot be read is told.
fn healthcheck(config: &RawConfig) -> Value {
    config.health_check().map_or_else(|error| json!({ "error": text::chain(&error) }), |check| json!(check))
}

/// The object as lines, values that are not there being left out.
fn lines(image: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let mut push = |key: &str, value: &Value| {
        let text = match value {
            Value::Null => return,
            Value::Array(items) if items.is_empty() => return,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        lines.push(format!("{:<14} {text}", format!("{key}:")));
    };
    for key in ["id", "names", "digest", "created", "author", "os", "architecture"] {
        push(key, &image[key]);
    }
    for key in [
        "entrypoint",
        "cmd",
        "env",
        "user",
        "working_dir",
        "stop_signal",
        "exposed_ports",
        "volumes",
        "labels",
        "healthcheck",
    ] {
        push(key, &image["config"][key]);
    }
    push("cached", &image["cached"]);
    for key in ["kernel", "kernel_source", "initramfs", "build_id", "agent_version"] {
        push(key, &image["runs_with"][key]);
    }
    let layers = image["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    lines.push(format!(
        "layers, lowest first ({}):",
        size(image["layers_bytes"].as_u64().unwrap_or_default())
    ));
    for layer in layers {
        let digest = layer["digest"].as_str().or(layer["diff_id"].as_str()).unwrap_or_default();
        lines.push(format!("  {digest}  {}", size(layer["stored_bytes"].as_u64().unwrap_or_default())));
    }
    lines
}

/// `nelly image history`.
pub(super) fn history(args: &HistoryArgs, context: &Context) -> Result<ExitCode> {
    const SHOWN: usize = 60;
    let (local, store) = (local(context)?, store(context)?);
    let plan = store.plan(&reference(&local, &args.image)?)?;
    let mut layers = plan.layers.iter();
    let mut steps: Vec<Value> = Vec::new();
    for step in plan.config.history().iter().flatten() {
        let layer = if step.empty_layer().unwrap_or(false) { None } else { layers.next() };
        steps.push(json!({ "schema": 1, "created": step.created(), "created_by": step.created_by(),
            "comment": step.comment(), "layer": layer.map(|layer| layer.diff_id.to_string()),
            "stored_bytes": layer.map_or(0, |layer| layer.size) }));
    }
    // Layers of which the image does not say how they were made.
    for layer in layers {
        steps.push(json!({ "schema": 1, "created": null, "created_by": null, "comment": null,
            "layer": layer.diff_id.to_string(), "stored_bytes": layer.size }));
    }
    steps.reverse();
    if args.json {
        out::json(Value::Array(steps))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = vec![["CREATED", "SIZE", "CREATED BY"].map(str::to_owned)];
    for step in &steps {
        let word = |key: &str| step[key].as_str().unwrap_or("-").to_owned();
        let by = word("created_by").replace(['\n', '\t'], " ");
        let by = if args.no_trunc || by.chars().count() <= SHOWN {
            by
        } else {
            format!("{}...", by.chars().take(SHOWN).collect::<String>())
        };
        let bytes = size(step["stored_bytes"].as_u64().unwrap_or_default());
        table.push([word("created").chars().take(10).collect(), bytes, by]);
    }
    for line in table::aligned(&table) {
        out::line(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

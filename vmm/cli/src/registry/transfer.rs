//! `nelly image pull` and `push`, and the pull of `nelly run`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nelly_image::{ImageName, LocalStore, Reference};
use nelly_registry::{Cancel, Client, Environment, RegistryOptions};
use serde_json::json;

use super::args::{PullArgs, PushArgs};
use super::bars::Bars;
use crate::context::Context;
use crate::fail::{OfFlag as _, Usage};
use crate::out;

/// A client by the settings and the environment.
pub(crate) fn client(context: &Context) -> Client {
    Client::new(options(context), Cancel::new())
}

/// How to reach hosts by the settings and the environment.
pub(crate) fn options(context: &Context) -> RegistryOptions {
    let mut options = RegistryOptions::default();
    options.hosts.clone_from(context.settings.registries());
    options.environment = Environment::new(|name| std::env::var(name).ok());
    options
}

fn store(context: &Context) -> Result<LocalStore> {
    let dir = context.places.images();
    LocalStore::open(&dir).with_context(|| format!("cannot use the local store {}", dir.display()))
}

fn parse(word: &str, called: &str) -> Result<ImageName> {
    match word.parse::<Reference>().of_flag(called)? {
        Reference::Named(name) => Ok(name),
        other => Err(Usage::error(format!(
            "{called}: `{other}` is not in a registry; registries have names such as alpine:3.20"
        ))),
    }
}

/// The architecture of `--platform` as images name it; `None` if it is the host's.
fn architecture(platform: &str) -> Result<Option<String>> {
    let known = |word: &str| match word {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        word => word.to_owned(),
    };
    let Some(word) = platform.strip_prefix("linux/").filter(|word| !word.is_empty() && !word.contains('/'))
    else {
        return Err(Usage::error(format!(
            "--platform {platform:?} is not linux/ARCHITECTURE, such as linux/amd64"
        )));
    };
    let word = known(word);
    Ok((word != known(std::env::consts::ARCH)).then_some(word))
}

/// `nelly image pull`.
pub(crate) fn pull(args: &PullArgs, context: &Context) -> Result<ExitCode> {
    let name = parse(&args.name, "NAME")?;
    let architecture = args.platform.as_deref().map(architecture).transpose()?.flatten();
    let mut bars = Bars::new("pulling", &name, args.quiet);
    let pulled =
        nelly_registry::pull(&client(context), &store(context)?, &name, architecture.as_deref(), &mut bars);
    bars.finish();
    let pulled = pulled.with_context(|| format!("cannot pull {name}"))?;
    let digest = pulled.descriptor.digest;
    if args.json {
        out::json(json!({ "schema": 1, "name": name.canonical(), "digest": digest.to_string(),
            "manifest_digest": pulled.manifest.digest.to_string(), "layers": pulled.layers,
            "size_bytes": pulled.size_bytes, "transferred_bytes": pulled.transferred_bytes }))?;
    } else if args.quiet {
        out::line(digest)?;
    } else {
        out::line(format_args!("{}@{digest}", name.familiar_repository()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `nelly image push`.
pub(crate) fn push(args: &PushArgs, context: &Context) -> Result<ExitCode> {
    let name = parse(&args.name, "NAME")?;
    let target = args.target.as_deref().map(|word| parse(word, "TARGET")).transpose()?;
    let target = target.unwrap_or_else(|| name.clone());
    let mut bars = Bars::new("pushing", &target, args.quiet);
    let pushed = nelly_registry::push(&client(context), &store(context)?, &name, &target, &mut bars);
    bars.finish();
    let pushed = pushed.with_context(|| format!("cannot push {name}"))?;
    let digest = pushed.manifest.digest;
    if args.json {
        out::json(json!({ "schema": 1, "name": target.canonical(), "digest": digest.to_string(),
            "layers": pushed.layers, "size_bytes": pushed.size_bytes,
            "transferred_bytes": pushed.transferred_bytes }))?;
    } else if args.quiet {
        out::line(digest)?;
    } else {
        out::line(format_args!("{}@{digest}", target.familiar_repository()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Pulls an image for `run`.
pub(crate) fn pull_for_run(name: &ImageName, quiet: bool, context: &Context) -> Result<()> {
    let mut bars = Bars::new("pulling", name, quiet);
    let pulled = nelly_registry::pull(&client(context), &store(context)?, name, None, &mut bars);
    bars.finish();
    pulled.map(drop).with_context(|| format!("cannot pull {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_by_name() {
        let host = std::env::consts::ARCH;
        for (word, want) in [
            (format!("linux/{host}"), Some(None)),
            ("linux/riscv64".into(), Some(Some("riscv64".to_owned()))),
            ("linux".into(), None),
            ("linux/".into(), None),
            ("windows/amd64".into(), None),
            ("linux/arm/v7".into(), None),
        ] {
            assert_eq!(architecture(&word).ok(), want, "{word}");
        }
    }

    #[test]
    fn names_of_registries_only() {
        assert!(parse("alpine", "NAME").is_ok());
        for word in ["oci:dir", "builtin:busybox", "Bad", "", "docker://alpine"] {
            assert!(parse(word, "NAME").is_err(), "{word}");
        }
    }
}

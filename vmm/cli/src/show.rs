//! `version`, `config show` and `help`.

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use nelly_sandbox::state::outcome;
use nelly_vmm::text;
use serde_json::json;

use crate::args::Cli;
use crate::context::Context;
use crate::settings::TABLE;
use crate::{assets, out, registries, table};

/// `nelly version`.
pub(crate) fn version(as_json: bool, context: &Context) -> Result<ExitCode> {
    let assets = assets::manifest(&context.search).ok();
    let build = nelly_sandbox::agent::BUILD.unwrap_or("unset");
    if as_json {
        let object = json!({
            "schema": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "build_id": build,
            "assets_build_id": assets.as_ref().map(|(_, manifest)| &manifest.build_id),
            "assets_dir": assets.as_ref().map(|(directory, _)| directory),
        });
        out::json(object)?;
    } else {
        out::line(format_args!("nelly {} (build {build})", env!("CARGO_PKG_VERSION")))?;
        match assets {
            Some((directory, manifest)) => {
                out::line(format_args!("assets {} (build {})", directory.display(), manifest.build_id))?;
            }
            None => out::line("assets: none installed")?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `nelly config show`.
pub(crate) fn config(as_json: bool, context: &Context) -> Result<ExitCode> {
    let file = context.places.config.join("config.toml");
    let registries = registries::rows(context.settings.registries());
    let rows = TABLE.iter().map(|setting| (setting, context.settings.get(setting.key, None)));
    if as_json {
        let rows: Vec<_> = rows
            .map(|(setting, (value, source))| {
                json!({ "schema": 1, "key": setting.key, "value": value, "source": source.to_string(),
                        "env": setting.env, "flag": setting.flag, "about": setting.about })
            })
            .chain(registries.into_iter().map(|(key, value, about)| {
                json!({ "schema": 1, "key": key, "value": value, "source": file.display().to_string(),
                        "env": "", "flag": "", "about": about })
            }))
            .collect();
        out::json(serde_json::Value::Array(rows))?;
    } else {
        let mut table = vec![["SETTING", "VALUE", "SOURCE", "MEANING"].map(str::to_owned)];
        for (setting, (value, source)) in rows {
            let value = if value.is_empty() { setting.empty.to_owned() } else { value };
            table.push([setting.key.to_owned(), value, source.to_string(), setting.about.to_owned()]);
        }
        for (key, value, about) in registries {
            table.push([key, value, file.display().to_string(), about.to_owned()]);
        }
        for line in table::aligned(&table) {
            out::line(text::line(&line))?;
        }
        out::line(format_args!("configuration file: {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `nelly help [TOPIC...]`; a topic is a verb, with its own verb where it has some.
pub(crate) fn help(topic: &[String]) -> Result<ExitCode> {
    let mut command = Cli::command();
    match topic {
        [] => out::line(command.render_help())?,
        [word] if word == "exit-codes" => {
            for (code, meaning) in outcome::table() {
                out::line(format_args!("{code:>6}  {meaning}"))?;
            }
            out::line(
                " other commands: 0 success, 1 failure, 2 usage error (an unknown verb or flag, or a value that a flag cannot have)",
            )?;
        }
        words => {
            let mut verb = &command;
            for word in words {
                let Some(found) = verb.find_subcommand(word) else {
                    let all =
                        verb.get_subcommands().map(|verb| verb.get_name()).collect::<Vec<_>>().join(", ");
                    let all = if all.is_empty() { "none".to_owned() } else { all };
                    out::message(format_args!(
                        "there is no help for {:?}; the topics are: {all}; and exit-codes",
                        words.join(" ")
                    ));
                    return Ok(ExitCode::from(2));
                };
                verb = found;
            }
            let name = format!("nelly {}", words.join(" "));
            out::line(verb.clone().bin_name(name).render_long_help())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

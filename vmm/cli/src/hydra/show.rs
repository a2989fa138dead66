//! `nelly config show isolated`: the settings of a machine, each with its source.

use std::process::ExitCode;

use anyhow::Result;
use nelly_hydra::{Profile, Row, Source};
use nelly_vmm::text;
use serde_json::json;

use crate::{out, table};

/// Prints the settings that the variables describe; secrets are hidden.
///
/// # Errors
/// A variable has a value that it cannot have.
pub(crate) fn show(profile: Profile, as_json: bool) -> Result<ExitCode> {
    let rows = super::machine(profile)?.rows();
    if as_json {
        let rows = rows.iter().map(|row| {
            let variable = if let Source::Variable(name) = row.source { name } else { "" };
            let all: Vec<_> = row.variables().collect();
            json!({ "schema": 1, "key": row.key, "value": row.value, "source": row.source.to_string(),
                    "env": variable, "variables": all })
        });
        out::json_array(rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![["SETTING", "VALUE", "SOURCE"].map(str::to_owned)];
    lines.extend(
        rows.into_iter().map(|Row { key, value, source }| [key.to_owned(), value, source.to_string()]),
    );
    for line in table::aligned(&lines) {
        out::line(text::line(&line))?;
    }
    Ok(ExitCode::SUCCESS)
}

//! The hidden verb that writes the manual pages, made of the definition of the command line: one
//! for each verb, as `nelly-image-ls.1`. The build and the packages run it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory};
use nelly_sandbox::state::outcome;

use crate::args::Cli;
use crate::settings::TABLE;

/// The hidden verb: `nelly __man DIRECTORY`.
pub(crate) const VERB: &str = "__man";

/// Where things lie, for the section FILES.
const FILES: &[(&str, &str)] = &[
    ("~/.config/nelly/config.toml", "The settings; $XDG_CONFIG_HOME moves it."),
    ("~/.local/share/nelly/sandboxes", "One directory for each sandbox; $XDG_DATA_HOME moves it."),
    ("~/.local/share/nelly/images", "The local store of images, an OCI image layout."),
    (
        "~/.cache/nelly",
        "Unpacked images, which are made again if they are removed; $XDG_CACHE_HOME moves it.",
    ),
    (
        "$XDG_RUNTIME_DIR/nelly",
        "The sockets of sandboxes that run; /run/nelly for root without that variable.",
    ),
    ("PREFIX/share/nelly", "Kernel, initramfs and built-in image, found from where the nelly program lies."),
    (
        "PREFIX/libexec/nelly",
        "The programs nelly-monitor, nelly-keeper, nelly-usernet, nelly-switch, nelly-unpack and nelly-secrets.",
    ),
];

/// Writes all pages into a directory, which is made.
pub(crate) fn write(directory: &Path) -> Result<ExitCode> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut command = Cli::command();
    command.build();
    write_all(&command, "nelly", directory)?;
    Ok(ExitCode::SUCCESS)
}

fn write_all(command: &Command, name: &str, directory: &Path) -> Result<()> {
    let path = directory.join(format!("{name}.1"));
    std::fs::write(&path, page(command, name)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_all(verb, &format!("{name}-{}", verb.get_name()), directory)?;
    }
    Ok(())
}

/// A page in the language of `man`.
fn page(command: &Command, name: &str) -> Result<Vec<u8>> {
    // Shown as text of its own below, which keeps the lines of examples.
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let man = clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .section("1")
        .source(concat!("nelly ", env!("CARGO_PKG_VERSION")))
        .manual("Nelly");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|arg| !arg.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend(rest(&after, name).into_bytes());
    Ok(page)
}

/// The sections that no definition has.
fn rest(after: &str, name: &str) -> String {
    let mut text = String::new();
    let (notes, examples) = match after.find("Example") {
        Some(at) => after.split_at(at),
        None => (after, ""),
    };
    let examples = examples.split_once('\n').map_or("", |(_, lines)| lines);
    for (title, lines) in [("NOTES", notes), ("EXAMPLES", examples)] {
        if !lines.trim().is_empty() {
            let lines: Vec<_> = lines.trim_end().lines().map(escaped).collect();
            let _ = write!(text, ".SH {title}\n.nf\n{}\n.fi\n", lines.join("\n"));
        }
    }
    let mut list = |title: &str, rows: Vec<(String, String)>| {
        let _ = writeln!(text, ".SH {title}");
        for (word, about) in rows {
            let _ = write!(text, ".TP\n\\fB{}\\fR\n{}\n", escaped(&word), escaped(&about));
        }
    };
    let mut codes: Vec<_> =
        outcome::table().into_iter().map(|(code, about)| (code, about.to_owned())).collect();
    codes.push(("0, 1, 2".into(), "other verbs: success, failure, usage error".into()));
    list("EXIT STATUS", codes);
    let mut variables: Vec<_> =
        TABLE.iter().map(|setting| (setting.env.to_owned(), setting.about.to_owned())).collect();
    variables.push(("NELLY_HOME".into(), "One directory for configuration, data, cache and sockets.".into()));
    list("ENVIRONMENT", variables);
    list("FILES", FILES.iter().map(|(path, about)| ((*path).to_owned(), (*about).to_owned())).collect());
    let also = if name == "nelly" { "nelly\\-run(1), nelly\\-ps(1), nelly\\-image(1)" } else { "nelly(1)" };
    let _ = write!(text, ".SH SEE ALSO\n{also}\n");
    text
}

/// Text as `man` shows it unchanged.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_a_page_with_its_flags_examples_and_exit_codes() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("man1");
        write(&directory).unwrap();
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
        let run = read("nelly-run.1");
        for part in [
            ".TH NELLY-RUN 1",
            "\\-\\-restart",
            ".SH EXAMPLES",
            "EXIT STATUS",
            "125",
            "NELLY_MEMORY",
            "FILES",
        ] {
            assert!(run.contains(part), "{part}: {run}");
        }
        assert!(read("nelly.1").contains("nelly\\-run(1)"));
        assert!(read("nelly-image-pull.1").contains("\\-\\-platform"));
        // The hidden verbs have none, and neither has a flag that create does not take.
        assert!(!directory.join("nelly-__man.1").exists());
        assert!(!read("nelly-create.1").contains("\\-\\-timings"));
    }

    #[test]
    fn nothing_in_a_text_is_a_macro() {
        assert_eq!(escaped(".TP a-b \\x"), "\\&.TP a\\-b \\ex");
    }
}

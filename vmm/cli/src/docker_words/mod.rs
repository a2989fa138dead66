//! What a docker user types and Nelly calls otherwise, or does not have. It is looked at only after
//! clap has refused the word.

mod flags;
mod verbs;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::args::Cli;

/// What to say of a refused word, as one sentence; `None` where clap's own words are the best.
/// `raw` is the command line, which begins with the program's name.
pub(crate) fn answer(error: &clap::Error, raw: &[String]) -> Option<String> {
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    let command = Cli::command();
    let (parent, path) = path(&command, raw);
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = word(ContextKind::InvalidSubcommand)?;
            // `docker container ls` is `docker ps`: the word after it is the verb.
            let follower = raw.get(2).filter(|_| path.is_empty() && word == "container");
            if let Some(verb) = follower.filter(|verb| command.find_subcommand(verb).is_some()) {
                return Some(format!("there is no verb `{word}`: use nelly {verb}"));
            }
            let rows = match path.as_str() {
                "" => verbs::TOP,
                "image" => verbs::IMAGE,
                _ => &[],
            };
            let row = rows.iter().find(|(docker, _)| Some(*docker) == follower.map(String::as_str));
            let row = row.or_else(|| rows.iter().find(|(docker, _)| *docker == word));
            let name = spaced(&path, word);
            match row {
                Some((_, Some(instead))) => Some(format!("there is no verb `{name}`: use {instead}")),
                Some((_, None)) => {
                    let help = spaced(&path, "--help");
                    Some(format!("nelly has nothing like `{name}` yet; `nelly {help}` lists what it has"))
                }
                None if path.is_empty() => None,
                None => {
                    let all: Vec<_> = parent.get_subcommands().map(clap::Command::get_name).collect();
                    Some(format!(
                        "there is no verb `{name}`; the verbs of nelly {path} are {}",
                        all.join(", ")
                    ))
                }
            }
        }
        ErrorKind::UnknownArgument => {
            let word = word(ContextKind::InvalidArg)?;
            let flag = word.split_once('=').map_or(word, |(flag, _)| flag);
            let (_, _, said) = flags::TABLE.iter().find(|(verbs, flags, _)| {
                (verbs.is_empty() || verbs.contains(&path.as_str())) && flags.contains(&flag)
            })?;
            let name = spaced("nelly", &path);
            Some(format!("{} has no flag `{flag}`: {said}", name.trim_end()))
        }
        _ => None,
    }
}

/// What to say of docker's `-h NAME`, which would print the help and start nothing: it has a value,
/// which help has not. `None` where help was asked for, and for any other error.
pub(crate) fn hostname(error: &clap::Error, raw: &[String]) -> Option<String> {
    let verb = raw.get(1).filter(|verb| ["run", "create"].contains(&verb.as_str()))?;
    if error.kind() != ErrorKind::DisplayHelp {
        return None;
    }
    let mut words = raw[2..].iter().take_while(|word| *word != "--");
    let value: &str = loop {
        match words.next()?.strip_prefix("-h") {
            Some("") => break words.next().filter(|next| !next.starts_with('-'))?,
            Some(value) => break value.trim_start_matches('='),
            None => {}
        }
    };
    Some(format!("nelly {verb} -h prints the help: write --hostname {value} to name the container's host"))
}

fn spaced(before: &str, word: &str) -> String {
    if before.is_empty() { word.to_owned() } else { format!("{before} {word}") }
}

/// The verb of a command line, and its name: `image ls`; empty if there is none yet.
fn path<'a>(command: &'a clap::Command, raw: &[String]) -> (&'a clap::Command, String) {
    let (mut verb, mut names) = (command, Vec::new());
    for word in raw.iter().skip(1) {
        let Some(found) = verb.find_subcommand(word) else { break };
        verb = found;
        names.push(verb.get_name());
    }
    (verb, names.join(" "))
}

/// Takes clap's guesses at what was meant out of an error: they go by the letters of a word, so
/// `rmi` (an image) would become `rm` (a sandbox), and a flag an argument of the container.
pub(crate) fn without_guesses(error: &mut clap::Error) {
    for kind in [ContextKind::Suggested, ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg] {
        error.remove(kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(words: &[&str]) -> (Option<String>, String) {
        let raw: Vec<String> = ["nelly"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let mut error = Cli::from_words(&raw).unwrap_err();
        let answer = answer(&error, &raw);
        without_guesses(&mut error);
        (answer, error.to_string())
    }

    #[test]
    fn words_of_docker_have_an_answer_and_no_guess() {
        for (words, part) in [
            (&["rmi", "web"][..], "use nelly image rm"),
            (&["images"], "use nelly image ls"),
            (&["build", "."], "nothing like `build` yet; `nelly --help`"),
            (&["image", "build"], "nothing like `image build` yet; `nelly image --help`"),
            (&["image", "remove", "x"], "no verb `image remove`: use nelly image rm"),
            (&["bench", "ls"], "no verb `bench ls`; the verbs of nelly bench are boot, run"),
            (&["container", "exec", "web"], "use nelly exec"),
            (&["container", "ls"], "use nelly ps"),
            (&["container", "frob"], "the verbs without it"),
            (&["volume", "ls"], "belongs to one sandbox"),
            (&["run", "-P", "alpine"], "published one by one"),
            (&["run", "--publish-all=true", "alpine"], "nelly run has no flag `--publish-all`: "),
            (&["run", "--ip=10.0.0.2", "alpine"], "no flag `--ip`: --network NAME,ip="),
            (&["create", "--gpus", "all", "alpine"], "nelly create has no flag `--gpus`"),
            (&["start", "-ai", "web"], "no flag `-a`: write nelly start NAME && nelly attach NAME"),
            (&["start", "-i", "web"], "nelly attach NAME"),
            (&["ps", "--format", "{{.ID}}"], "--json | jq"),
            (&["ps", "-n", "5"], "head -n 1"),
            (&["ps", "-l"], "head -n 1"),
            (&["inspect", "-f", "{{.Id}}", "web"], "jq"),
            (&["login", "-p", "secret"], "--password-stdin"),
            (&["rm", "-v", "web"], "always removed with it"),
            (&["exec", "--privileged", "web", "id"], "rights of its container"),
            (&["image", "ls", "--digests"], "nelly image ls has no flag `--digests`"),
            (&["image", "list", "-a"], "nelly image ls has no flag `-a`"),
            (&["image", "prune", "-f"], "asks no question"),
            (&["stats", "--no-stream"], "always prints once"),
            (&["-v"], "nelly has no flag `-v`: write nelly version"),
        ] {
            let (answer, _) = said(words);
            assert!(answer.as_ref().is_some_and(|answer| answer.contains(part)), "{words:?}: {answer:?}");
        }
        for words in
            [&["rmm"][..], &["run", "--namee", "x", "alpine"], &["ps", "-x"], &["rename", "-p", "a", "b"]]
        {
            let (answer, own) = said(words);
            assert_eq!(answer, None, "{words:?}");
            assert!(!own.contains("tip:"), "{words:?}: {own}");
        }
    }

    #[test]
    fn a_hostname_is_not_taken_for_help() {
        for (words, name) in [
            (&["run", "-h", "web", "alpine"][..], Some("web")),
            (&["run", "-d", "-hweb", "alpine"], Some("web")),
            (&["create", "--rm", "-h=web", "alpine"], Some("web")),
            (&["run", "-h"], None),
            (&["run", "-d", "-h"], None),
            (&["run", "-h", "--name"], None),
            (&["run", "--help"], None),
            (&["run", "--namee", "-h", "web"], None),
            (&["exec", "-h", "web"], None),
            (&["-h", "run"], None),
        ] {
            let raw: Vec<String> = ["nelly"].iter().chain(words).map(|word| (*word).to_owned()).collect();
            let said = hostname(&Cli::from_words(&raw).unwrap_err(), &raw);
            let expected = name.map(|name| format!("--hostname {name} "));
            assert_eq!(said.is_some(), expected.is_some(), "{words:?}: {said:?}");
            assert!(said.is_none_or(|said| said.contains(&expected.unwrap())), "{words:?}");
        }
        // After the image it is the command's.
        for words in [&["run", "alpine", "ls", "-h", "x"][..], &["run", "--", "ls", "-h"]] {
            let raw: Vec<String> = ["nelly"].iter().chain(words).map(|word| (*word).to_owned()).collect();
            assert!(Cli::from_words(&raw).is_ok(), "{words:?}");
        }
    }

    #[test]
    fn what_docker_spells_so_is_taken() {
        for words in [
            &["stop", "-s", "INT", "-t", "5", "web"][..],
            &["stop", "--timeout", "5", "web"],
            &["restart", "--timeout", "5", "web"],
            &["logs", "-n", "5", "-f", "web"],
            &["logs", "--tail", "all", "web"],
            &["kill", "-s", "HUP", "web"],
            &["image", "list", "-q"],
            &["exec", "-it", "-u", "0", "-w", "/", "-e", "A=1", "web", "id"],
            &["run", "-itd", "--name", "web", "alpine"],
            &["run", "-p", "80:80", "--dns", "1.1.1.1", "--network", "none", "alpine"],
            &["run", "--network", "dev", "--network-alias", "db", "alpine"],
            &["network", "create", "--internal", "--label", "a=b", "--subnet", "10.7.0.0/24", "dev"],
            &["network", "ls", "-q", "-f", "name=dev"],
            &["network", "rm", "-f", "dev"],
        ] {
            let raw: Vec<String> = ["nelly"].iter().chain(words).map(|word| (*word).to_owned()).collect();
            assert!(Cli::from_words(&raw).is_ok(), "{words:?}");
        }
    }

    #[test]
    fn what_nelly_has_is_not_in_the_tables() {
        let command = Cli::command();
        let image = command.find_subcommand("image").unwrap();
        for (parent, rows) in [(&command, verbs::TOP), (image, verbs::IMAGE)] {
            for (verb, instead) in rows {
                assert!(parent.find_subcommand(verb).is_none(), "{verb} exists");
                instead.iter().for_each(|text| there_are(&command, text));
            }
        }
        for (verbs, flags, said) in flags::TABLE {
            there_are(&command, said);
            for verb in *verbs {
                let words: Vec<String> =
                    format!("nelly {verb}").split_whitespace().map(str::to_owned).collect();
                let (found, name) = path(&command, &words);
                assert_eq!(name, *verb, "is no verb");
                for flag in *flags {
                    let known = found.get_arguments().any(|arg| {
                        arg.get_long().is_some_and(|long| *flag == format!("--{long}"))
                            || arg.get_short().is_some_and(|short| *flag == format!("-{short}"))
                    });
                    assert!(!known, "{verb} has {flag}");
                }
            }
        }
    }

    /// Every `nelly VERB` of a text is one.
    fn there_are(command: &clap::Command, text: &str) {
        for words in text.split("nelly ").skip(1) {
            let raw: Vec<String> =
                format!("nelly {words}").split([' ', ',', ':', ';', '`']).map(str::to_owned).collect();
            let (_, name) = path(command, &raw);
            assert!(!name.is_empty(), "{text:?}: nelly {words} does not exist");
        }
    }
}

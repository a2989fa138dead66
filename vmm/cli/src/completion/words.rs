//! Which words fit at the end of a command line, by its definition. No input or output.

use clap::{Arg, Command};

/// Names that only this host knows, each with what is said of it.
pub(super) trait Names {
    /// The sandboxes.
    fn sandboxes(&self) -> Vec<(String, String)>;
    /// The images of the local store.
    fn images(&self) -> Vec<(String, String)>;
}

/// A candidate and its description.
type Candidate = (String, String);

/// What fits for the last of `words`, which may be empty; the others are complete. Nothing where
/// a file fits, which the shell knows best.
pub(super) fn candidates(command: &Command, words: &[String], names: &dyn Names) -> Vec<Candidate> {
    let Some((typed, before)) = words.split_last() else { return Vec::new() };
    let Some(place) = place(command, before) else { return Vec::new() };
    let found = match place {
        Place::Value(arg) => values(arg, names),
        Place::Word { command, flags, position } => match typed.split_once('=') {
            Some((flag, value)) if flags && flag.starts_with("--") => {
                let Some(arg) = by_long(command, &flag[2..]) else { return Vec::new() };
                return fitting(values(arg, names), value)
                    .into_iter()
                    .map(|(word, about)| (format!("{flag}={word}"), about))
                    .collect();
            }
            _ if flags && typed.starts_with('-') => all_flags(command),
            _ if command.has_subcommands() => command
                .get_subcommands()
                .filter(|verb| !verb.is_hide_set())
                .map(|verb| (verb.get_name().to_owned(), first_line(verb.get_about())))
                .collect(),
            _ => match positional(command, position) {
                Some(arg) => values(arg, names),
                None => Vec::new(),
            },
        },
    };
    fitting(found, typed)
}

fn fitting(found: Vec<Candidate>, typed: &str) -> Vec<Candidate> {
    let mut found: Vec<_> = found.into_iter().filter(|(word, _)| word.starts_with(typed)).collect();
    found.sort();
    found.dedup();
    found
}

/// Where the word stands that is being typed.
enum Place<'a> {
    /// It is the value of this flag.
    Value(&'a Arg),
    /// It is a flag (if flags have not ended), a verb, or a word of this position.
    Word { command: &'a Command, flags: bool, position: usize },
}

/// Walks over the words that are complete; `None` where one is wrong.
fn place<'a>(command: &'a Command, before: &[String]) -> Option<Place<'a>> {
    let (mut command, mut flags, mut position) = (command, true, 0);
    let mut words = before.iter();
    while let Some(word) = words.next() {
        if flags && word == "--" {
            flags = false;
            // `nelly run -- COMMAND` has no image: all words are the command's.
            position += usize::from(position == 0 && takes_command(command));
        } else if flags && word.len() > 1 && word.starts_with('-') {
            let Some(arg) = wants_value(command, word)? else { continue };
            if words.next().is_none() {
                return Some(Place::Value(arg));
            }
        } else if command.has_subcommands() {
            command = command.find_subcommand(word)?;
        } else {
            position += 1;
            flags &= !takes_command(command);
        }
    }
    Some(Place::Word { command, flags, position })
}

/// Whether flags end at the first word, and the words after it are a command's.
fn takes_command(command: &Command) -> bool {
    command.get_positionals().any(Arg::is_trailing_var_arg_set)
}

/// The flag whose value is the next word, if this one needs one. `None` for a flag that is unknown.
#[allow(clippy::option_option, reason = "unknown, or known and with or without a value")]
fn wants_value<'a>(command: &'a Command, word: &str) -> Option<Option<&'a Arg>> {
    let takes = |arg: &'a Arg| arg.get_action().takes_values().then_some(arg);
    if let Some(long) = word.strip_prefix("--") {
        return match long.split_once('=') {
            Some(_) => Some(None),
            None => Some(takes(by_long(command, long)?)),
        };
    }
    let letters: Vec<char> = word.chars().skip(1).collect();
    for (at, letter) in letters.iter().enumerate() {
        let arg = command.get_arguments().find(|arg| arg.get_short() == Some(*letter))?;
        if let Some(arg) = takes(arg) {
            return Some((at + 1 == letters.len()).then_some(arg));
        }
    }
    Some(None)
}

fn by_long<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(long))
}

/// The argument at this position; the last one where it takes any number. A command's own words are
/// none of ours.
fn positional(command: &Command, position: usize) -> Option<&Arg> {
    let all: Vec<_> = command.get_positionals().collect();
    match all.get(position) {
        Some(arg) => Some(arg),
        None => all
            .last()
            .filter(|arg| {
                !arg.is_trailing_var_arg_set() && arg.get_num_args().is_some_and(|n| n.max_values() > 1)
            })
            .copied(),
    }
}

fn all_flags(command: &Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown
        .flat_map(|arg| {
            let about = first_line(arg.get_help());
            let long = arg.get_long().map(|long| format!("--{long}"));
            let short = arg.get_short().map(|short| format!("-{short}"));
            long.into_iter().chain(short).map(move |flag| (flag, about.clone()))
        })
        .collect()
}

/// The values that an argument can have, by what its help calls them.
fn values(arg: &Arg, names: &dyn Names) -> Vec<Candidate> {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let shown = possible.iter().filter(|value| !value.is_hide_set());
        return shown.map(|value| (value.get_name().to_owned(), first_line(value.get_help()))).collect();
    }
    let called = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    match called.split([' ', '[', '/', ':']).next() {
        Some("SANDBOX") => names.sandboxes(),
        Some("IMAGE") => names.images(),
        _ => Vec::new(),
    }
}

fn first_line(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    struct Few;

    impl Names for Few {
        fn sandboxes(&self) -> Vec<Candidate> {
            vec![("web".into(), "alpine".into()), ("worker".into(), String::new())]
        }

        fn images(&self) -> Vec<Candidate> {
            vec![("alpine:latest".into(), String::new()), ("debian:12".into(), String::new())]
        }
    }

    fn of(words: &[&str]) -> Vec<String> {
        let mut command = Cli::command();
        command.build();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        candidates(&command, &words, &Few).into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn what_fits_depends_on_the_place() {
        for (words, expected) in [
            (&["sto"][..], &["stop"][..]),
            (&["stop", "w"], &["web", "worker"]),
            (&["stop", "web", "wo"], &["worker"]),
            (&["stop", "-t", "w"], &[]),
            (&["stop", "-t", "5", "we"], &["web"]),
            (&["stop", "-t5", "we"], &["web"]),
            (&["stop", "--time=5", "we"], &["web"]),
            (&["stop", "--ti"], &["--time"]),
            (&["stop", "--", "w"], &["web", "worker"]),
            (&["port", "add", "we"], &["web"]),
            (&["port", "add", "web", "w"], &[]),
            (&["port", "l"], &["ls"]),
            (&["cp", "we"], &["web"]),
            (&["cp", "./x", "we"], &["web"]),
            (&["cp", "./"], &[]),
            (&["exec", "we"], &["web"]),
            (&["exec", "-it", "we"], &["web"]),
            (&["exec", "-u", "w"], &[]),
            // The command is not ours, and neither are its flags.
            (&["exec", "web", "w"], &[]),
            (&["exec", "web", "ls", "-"], &[]),
            (&["run", "--rm", "-it", "al"], &["alpine:latest"]),
            (&["run", "alpine", "al"], &[]),
            (&["run", "--", "al"], &[]),
            (&["run", "--pull", "n"], &["never"]),
            (&["run", "--pull=n"], &["--pull=never"]),
            (&["run", "--no-such", "al"], &[]),
            (&["rename", "w"], &["web", "worker"]),
            (&["rename", "web", "w"], &[]),
            (&["image", "hi"], &["history"]),
            (&["image", "rm", "d"], &["debian:12"]),
            (&["image", "nothing", ""], &[]),
            (&["nothing", ""], &[]),
            (&["completion", "z"], &["zsh"]),
            (&["bench", "de"], &["density"]),
            (&[], &[]),
        ] {
            assert_eq!(of(words), expected, "{words:?}");
        }
        assert!(of(&[""]).len() > 20 && of(&["run", "-"]).contains(&"--name".to_owned()));
        assert!(!of(&["create", "--"]).contains(&"--detach".to_owned()));
    }
}

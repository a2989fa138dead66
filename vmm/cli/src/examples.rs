//! Every example of a help text and of the README is a command line that this program takes.

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::args::Cli;

/// The words of each `nelly ...` in a line of shell. What stands after two blanks explains.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut all, mut words, mut word, mut quote) = (Vec::new(), Vec::new(), None::<String>, None);
    let mut chars = line.trim().chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => {
                words.extend(word.take());
                if chars.peek() == Some(&' ') {
                    break;
                }
            }
            (None, '|' | '&' | ';' | '(' | ')' | '<' | '>') => {
                // `2>`, `$(`, `code=$(`: no words of a command.
                if !matches!(c, '(' | '<' | '>') {
                    words.extend(word.take());
                }
                word = None;
                all.push(std::mem::take(&mut words));
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    all.push(words);
    let of_ours = all.into_iter().filter_map(|words| {
        let at = words.iter().position(|word| word == "nelly")?;
        // Behind xargs, and behind nothing else.
        (at == 0 || words[0] == "$" || words[0] == "xargs").then(|| words[at..].to_vec())
    });
    of_ours.collect()
}

fn refused(words: &[String]) -> Option<String> {
    let mut words = words.to_vec();
    if words.last().is_some_and(|word| word == "xargs") {
        words.pop();
    }
    match Cli::from_words(&words) {
        Ok(_) => None,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => None,
        // xargs gives the rest.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => None,
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn every_example_is_taken() {
    fn helps(command: &clap::Command, texts: &mut Vec<String>) {
        texts.extend(command.get_after_help().map(ToString::to_string));
        command.get_subcommands().for_each(|verb| helps(verb, texts));
    }
    let mut texts = Vec::new();
    helps(&Cli::command(), &mut texts);
    let readme = include_str!("../../../README.md");
    let session = readme.lines().filter(|line| line.starts_with("$ "));
    let examples = texts.iter().flat_map(|text| text.lines().filter(|line| line.starts_with("  ")));
    let mut count = 0;
    for line in examples.chain(session) {
        for words in commands(line) {
            count += 1;
            assert_eq!(refused(&words), None, "{line:?} is read as {words:?}");
        }
    }
    assert!(count > 100, "only {count} examples were found");
}

#[test]
fn lines_of_shell_are_split_as_a_shell_does() {
    for (line, wanted) in [
        ("  nelly run -- sh -c 'a; b'     says so", &["nelly run -- sh -c a; b"][..]),
        ("nelly ps -q | xargs -r nelly rm", &["nelly ps -q", "nelly rm"]),
        ("code=$(nelly wait job) && nelly logs job", &["nelly wait job", "nelly logs job"]),
        ("source <(nelly completion bash)", &["nelly completion bash"]),
        ("$ nelly stop web && nelly rm web   # both", &["nelly stop web", "nelly rm web"]),
        ("nelly logs web 2>/dev/null", &["nelly logs web"]),
        ("echo hi | tr a b", &[]),
    ] {
        let found: Vec<_> = commands(line).iter().map(|words| words.join(" ")).collect();
        assert_eq!(found, wanted, "{line}");
    }
}

//! What a docker user types and Nelly calls otherwise, or does not have. It is looked at only after
//! clap has refused the word.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// docker's verbs, and what to type instead; `None` where there is nothing.
const VERBS: &[(&str, Option<&str>)] = &[
    ("build", None),
    ("builder", None),
    ("buildx", None),
    ("commit", None),
    ("compose", None),
    ("container", Some("the verbs without it: nelly ps, nelly rm, nelly inspect")),
    ("export", None),
    ("history", Some("nelly image history")),
    ("images", Some("nelly image ls")),
    ("import", Some("nelly run rootfs:DIR for a directory, or nelly image load for an archive")),
    ("info", Some("nelly doctor")),
    ("list", Some("nelly ps")),
    ("load", Some("nelly image load")),
    ("ls", Some("nelly ps")),
    ("network", None),
    ("port", None),
    ("prune", Some("nelly image prune for images, nelly gc for what killed commands left behind")),
    ("pull", Some("nelly image pull")),
    ("push", Some("nelly image push")),
    ("remove", Some("nelly rm")),
    ("rmi", Some("nelly image rm")),
    ("save", Some("nelly image save")),
    ("search", None),
    ("swarm", None),
    ("system", Some("nelly doctor, nelly gc and nelly image prune")),
    ("tag", Some("nelly image tag")),
];

/// Flags of docker's `run` and `create`, and what is the case.
const FLAGS: &[(&str, &str)] = &[
    ("--blkio-weight", "there are no limits of input and output yet"),
    ("--cidfile", "write --result FILE, or take the id that nelly run -d prints"),
    ("--cpu-shares", "a machine has whole vCPUs: --cpus N"),
    ("--cpuset-cpus", "a machine has whole vCPUs: --cpus N"),
    ("--dns", "there are no guest networks yet"),
    ("--expose", "there are no guest networks yet"),
    ("--gpus", "host devices cannot be passed to a machine yet"),
    ("--ip", "there are no guest networks yet"),
    ("--ipc", "a container shares nothing with the host: each has a kernel of its own"),
    ("--link", "there are no guest networks yet"),
    ("--log-driver", "the log is a file of the sandbox, which nelly logs reads"),
    ("--memory-swap", "a machine has no swap; --memory is its memory"),
    ("--net", "there are no guest networks yet"),
    ("--network", "there are no guest networks yet"),
    ("--oom-kill-disable", "the guest's kernel decides within the machine's --memory"),
    ("--pid", "a container shares nothing with the host: each has a kernel of its own"),
    ("--publish", "there are no guest networks yet, so no port can be published"),
    ("-p", "there are no guest networks yet, so no port can be published"),
    ("--publish-all", "there are no guest networks yet, so no port can be published"),
    ("-P", "there are no guest networks yet, so no port can be published"),
    ("--runtime", "each container has a machine of its own; there are no other runtimes"),
    ("--userns", "user namespaces are not used: the machine is the boundary"),
    ("--uts", "a container shares nothing with the host: each has a kernel of its own"),
];

/// What to say of a refused word, as one sentence; `None` where clap's own words are the best.
pub(crate) fn answer(error: &clap::Error, verb: Option<&str>) -> Option<String> {
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = word(ContextKind::InvalidSubcommand)?;
            let (_, instead) = VERBS.iter().find(|(docker, _)| *docker == word)?;
            Some(match instead {
                Some(instead) => format!("there is no verb `{word}`: use {instead}"),
                None => format!("nelly has nothing like `{word}` yet; `nelly --help` lists what it has"),
            })
        }
        ErrorKind::UnknownArgument if matches!(verb, Some("run" | "create")) => {
            let word = word(ContextKind::InvalidArg)?;
            let flag = word.split_once('=').map_or(word, |(flag, _)| flag);
            let (_, said) = FLAGS.iter().find(|(docker, _)| *docker == flag)?;
            Some(format!("nelly {} has no flag `{flag}`: {said}", verb.unwrap_or_default()))
        }
        _ => None,
    }
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
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn said(words: &[&str]) -> (Option<String>, String) {
        let raw: Vec<String> = ["nelly"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let mut error = Cli::from_words(&raw).unwrap_err();
        let answer = answer(&error, words.first().copied());
        without_guesses(&mut error);
        (answer, error.to_string())
    }

    #[test]
    fn words_of_docker_have_an_answer_and_no_guess() {
        for (words, part) in [
            (&["rmi", "web"][..], "nelly image rm"),
            (&["images"], "nelly image ls"),
            (&["build", "."], "nothing like `build`"),
            (&["run", "-p", "80:80", "alpine"], "no port can be published"),
            (&["run", "--network=host", "alpine"], "no flag `--network`: there are no guest networks"),
            (&["create", "--gpus", "all", "alpine"], "nelly create has no flag `--gpus`"),
        ] {
            let (answer, _) = said(words);
            assert!(answer.as_ref().is_some_and(|answer| answer.contains(part)), "{words:?}: {answer:?}");
        }
        for words in
            [&["rmm"][..], &["run", "--namee", "x", "alpine"], &["ps", "-x"], &["stop", "--tim", "5"]]
        {
            let (answer, own) = said(words);
            assert_eq!(answer, None, "{words:?}");
            assert!(!own.contains("tip:"), "{words:?}: {own}");
        }
    }

    #[test]
    fn what_nelly_has_is_not_in_the_tables() {
        let command = Cli::command();
        for (verb, instead) in VERBS {
            assert!(command.find_subcommand(verb).is_none(), "{verb} exists");
            for words in instead.iter().flat_map(|text| text.split("nelly ").skip(1)) {
                let verb = words.split([' ', ',']).next().unwrap();
                assert!(command.find_subcommand(verb).is_some(), "nelly {verb} does not exist");
            }
        }
        let run = command.find_subcommand("run").unwrap();
        for (flag, _) in FLAGS {
            let known = run.get_arguments().any(|arg| {
                arg.get_long().is_some_and(|long| *flag == format!("--{long}"))
                    || arg.get_short().is_some_and(|short| *flag == format!("-{short}"))
            });
            assert!(!known, "{flag} exists");
        }
    }
}

//! How the command answers what is typed wrongly, or as docker has it: exit codes and sentences.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output};

fn nelly(home: &tempfile::TempDir, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
    command.args(words).env_clear().env("NELLY_HOME", home.path()).output().unwrap()
}

#[test]
fn usage_errors_have_their_exit_code() {
    let home = tempfile::tempdir().unwrap();
    for (words, code, part) in [
        // Of clap, and of ours.
        (&["rmi", "a"][..], 2, "nelly image rm"),
        (&["frobnicate"], 2, "frobnicate"),
        (&["image", "remove", "a"], 2, "nelly image rm"),
        (&["bench", "ls"], 2, "boot, run, exec"),
        (&["start", "-a", "web"], 2, "nelly attach"),
        (&["ps", "--format", "json"], 2, "--json"),
        (&["ps", "--no-such"], 2, "--no-such"),
        (&["ps", "--filter", "status=melting"], 2, "--filter"),
        (&["ps", "--filter", "colour=red"], 2, "the filters are"),
        (&["stop", "-t", "soon", "web"], 2, "--time"),
        (&["stop", "--signal", "NOPE", "web"], 2, "--signal"),
        (&["restart", "-t", "1.5", "web"], 2, "--time"),
        (&["kill", "-s", "NOPE", "web"], 2, "--signal"),
        (&["kill", "-NOPE", "web"], 2, "--signal"),
        (&["update", "--restart", "often", "web"], 2, "--restart"),
        (&["logs", "--since", "yesterday", "web"], 2, "--since"),
        (&["image", "ls", "--filter", "size=1"], 2, "--filter"),
        (&["image", "pull", "--platform", "amd64", "alpine"], 2, "--platform"),
        (&["image", "pull", "oci:dir"], 2, "not in a registry"),
        (&["image", "pull", "Bad"], 2, "NAME"),
        (&["image", "push", "alpine", "-q", "Bad"], 2, "TARGET"),
        (&["image", "push", "rootfs:dir"], 2, "not in a registry"),
        (&["image", "tag", "alpine", "Bad"], 2, "NAME"),
        (&["image", "tag", "alpine", &format!("a@sha256:{}", "0".repeat(64))], 2, "give a tag"),
        (&["image", "inspect", "Bad"], 2, "IMAGE"),
        (&["image", "history", ""], 2, "IMAGE"),
        (&["rename", "web", "Bad!"], 2, "NEW"),
        (&["kill", "--exec", "", "web"], 2, "--exec"),
        (&["login", "--username", "a:b"], 2, "--username"),
        (&["bench", "run", "-m", "12"], 2, "--memory"),
        (&["bench", "exec", "-m", "1M"], 2, "--memory"),
        (&["bench", "density", "--cpus", "99"], 2, "--cpus"),
        (&["bench", "density", "--memory-limit", "x"], 2, "--memory-limit"),
        (&["bench", "boot", "--limit", "x"], 2, "--limit"),
        (&["bench", "boot", "--marker", ""], 2, "--marker"),
        (&["bench", "boot", "--append", "a\nb"], 2, "--append"),
        (&["create", "--cpus", "0.5", "alpine"], 2, "whole vCPUs"),
        (&["create", "--cpus", "99", "alpine"], 2, "--cpus"),
        (&["create", "-m", "512", "alpine"], 2, "512M"),
        (&["create", "-e", "=x", "alpine"], 2, "NAME=VALUE"),
        (&["create", "-w", "here", "alpine"], 2, "absolute"),
        (&["create", "--tmpfs", "x", "alpine"], 2, "--tmpfs"),
        (&["create", "--platform", "linux/riscv64", "alpine"], 2, "--platform"),
        (&["create", "-v", "a:/x", "-v", "b:/x", "alpine"], 2, "same path"),
        (&["create", "--log-level", "loud", "alpine"], 2, "--log-level"),
        (&["create", "--timeout", "5s", "alpine"], 2, "--timeout"),
        (&["create", "--detach-keys", "ctrl-a", "alpine"], 2, "--detach-keys"),
        // One grammar of sizes and one of durations, which the refusals tell.
        (&["create", "--shm-size", "64", "alpine"], 2, "write 64M"),
        (&["create", "--storage", "8 GB", "alpine"], 2, "512MB, 512MiB or 1.5G"),
        (&["update", "-m", "many", "web"], 2, "512MB, 512MiB or 1.5G"),
        (&["create", "--stop-timeout", "soon", "alpine"], 2, "1m30s, or a number of seconds"),
        (&["create", "--health-cmd", "x", "--health-interval", "5", "alpine"], 2, "write 5s for seconds"),
        (&["stop", "-t", "1m30", "web"], 2, "1m30s, or a number of seconds"),
        (&["events", "--until", "1d"], 2, "duration from now"),
        (&["logs", "--since", "10", "web"], 2, "write 10s"),
        (&["run", "--timeout", "0", "--", "true"], 125, "more than zero"),
        (&["run", "-m", "0.5", "--", "true"], 125, "write 0.5M"),
        (&["bench", "run", "--limit", "0s"], 2, "more than zero"),
        (&["stop", "-t", "1m30s", "web"], 1, "there is no sandbox"),
        (&["update", "-m", "512MB", "web"], 1, "there is no sandbox"),
        (&["create"], 2, "IMAGE"),
        (&["create", "-hweb", "alpine"], 2, "--hostname web"),
        // These have the exit codes of what they run.
        (&["run", "--cpus", "0.5", "alpine"], 125, "whole vCPUs"),
        (&["run", "-P", "alpine"], 125, "ports are published one by one"),
        (&["run", "-h", "web", "alpine"], 125, "--hostname web"),
        (&["run", "--name", &"x".repeat(255), "--", "true"], 125, "use 1 to 63 of the characters"),
        (&["run", "--hostname", &"x".repeat(65), "--", "true"], 125, "use 1 to 64 of the characters"),
        (&["create", "--name", &"x".repeat(64), "alpine"], 2, "--name"),
        (&["create", "--hostname", "a/b", "alpine"], 2, "--hostname"),
        (&["run", "-p", "80", "alpine"], 125, "-p"),
        (&["run", "--net", "bridge", "alpine"], 125, "write none, user"),
        (&["create", "--net", "none", "-p", "8080:80", "alpine"], 2, "--net user"),
        (&["boot", "--kernel", "x", "--net", "tap=t,ip=10.0.0.2/24"], 125, "sets up its network itself"),
        (&["exec", "web"], 125, "COMMAND"),
        (&["exec", "--no-such"], 125, "--no-such"),
        (&["attach", "--detach-keys", "ctrl-1", "web"], 125, "--detach-keys"),
        (&["boot"], 125, "--kernel"),
        // What fails though it is used rightly.
        (&["stop", "-t", "5", "web"], 1, "there is no sandbox"),
        (&["kill", "-9", "web"], 1, "there is no sandbox"),
        (&["start", "web"], 1, "there is no sandbox"),
        (&["restart", "-t", "0", "web"], 1, "there is no sandbox"),
        (&["image", "inspect", "nothing:1"], 1, "nelly image pull"),
    ] {
        let done = nelly(&home, words);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(part), "{words:?} does not say {part:?}: {said}");
        assert!(!said.contains("tip:") && done.stdout.is_empty(), "{words:?}: {said}");
    }
    let codes = nelly(&home, &["help", "exit-codes"]);
    assert!(String::from_utf8_lossy(&codes.stdout).contains("2 usage error"));
}

/// The names of all verbs: `image ls`.
fn verbs(home: &tempfile::TempDir) -> Vec<String> {
    let directory = home.path().join("man");
    assert!(nelly(home, &["__man", directory.to_str().unwrap()]).status.success());
    let pages = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let names =
        pages.filter_map(|page| Some(page.to_str()?.strip_prefix("nelly-")?.strip_suffix(".1")?.to_owned()));
    // A verb has one group at most, and may have a hyphen of its own.
    let words = |name: String| if name == "ssh-config" { name } else { name.replacen('-', " ", 1) };
    names.map(words).collect()
}

#[test]
fn the_help_says_what_a_person_can_know() {
    let home = tempfile::tempdir().unwrap();
    let help = |verb: &str| {
        let words: Vec<_> = verb.split(' ').chain(["--help"]).collect();
        let done = nelly(&home, &words);
        assert_eq!(done.status.code(), Some(0), "{words:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let verbs = verbs(&home);
    assert!(verbs.len() > 40, "{verbs:?}");
    for verb in &verbs {
        let said = help(verb);
        assert!(!said.contains("xargs nelly"), "{verb}: xargs runs once though nothing comes: {said}");
        // What holds a sandbox is explained where it is named.
        assert!(!said.replace("process on this host, nelly-keeper", "").contains("keeper"), "{verb}: {said}");
    }
    let create = help("create");
    for flag in ["--in ", "--detach ", "--timeout ", "--result ", "--timings", "--trace ", "--detach-keys "] {
        assert!(!create.contains(flag), "{flag}: {create}");
    }
    for (verb, part) in [
        ("run", "not with --rm [default: no]"),
        ("run", "nocopy"),
        ("run", "volume-nocopy"),
        ("run", "tmpfs-mode=MODE"),
        ("boot", "rw what the guest writes goes into FILE (the default of --disk)"),
        ("boot", "is gone when the machine ends (the default of --image)"),
        ("events", "docker counts it back"),
        ("stop", "or a number of seconds"),
    ] {
        let said = help(verb).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(part), "{verb} does not say {part:?}: {said}");
    }
    let shown = nelly(&home, &["config", "show"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    let words: Vec<_> = shown.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(words, ["SETTING", "VALUE", "SOURCE", "MEANING"]);
}

#[test]
fn every_verb_of_sandboxes_has_an_example() {
    let home = tempfile::tempdir().unwrap();
    for verb in [
        "run", "create", "start", "stop", "kill", "restart", "wait", "exec", "attach", "pause", "unpause",
        "update", "stats", "ps", "logs", "inspect", "rename", "rm", "gc",
    ] {
        for words in [[verb, "--help"], [verb, "-h"]] {
            let done = nelly(&home, &words);
            let said = String::from_utf8_lossy(&done.stdout);
            assert_eq!(done.status.code(), Some(0), "{words:?}");
            assert!(said.contains(&format!("nelly {verb}")), "{words:?}: {said}");
            assert!(said.contains("Example"), "{words:?}: {said}");
        }
    }
}

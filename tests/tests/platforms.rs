//! What docs/platforms.md promises of architectures and hypervisors, beside the tests that it
//! names: each is there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

/// The text of each Rust source below a directory.
fn sources(at: &Path, found: &mut String) {
    let all: Vec<PathBuf> = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in all {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// What is wrong with a table whose rows are what is promised, in which line, and who holds it.
fn wrong(page: &str, lines: &[&str], is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let rows: Vec<[&str; 3]> = page
        .lines()
        .filter_map(|row| {
            row.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect::<Vec<_>>().try_into().ok()
        })
        .collect();
    for line in lines {
        if !rows.iter().any(|[of, ..]| of == line) {
            found.push(format!("no row of {line}"));
        }
    }
    for [of, what, held] in rows.iter().filter(|[of, ..]| *of != "line") {
        let names: Vec<&str> = held.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && !held.contains("**no**") {
            found.push(format!("{of}, {what}: nothing holds it"));
        }
        let missing = names.iter().filter(|name| !is_there(name));
        found.extend(missing.map(|name| format!("{of}, {what}: there is no {name}")));
    }
    found
}

#[test]
fn each_promise_of_a_platform_has_a_test_that_is_there() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut text = String::new();
    for at in ["vmm", "guest-agent", "tests"] {
        sources(&top.join(at), &mut text);
    }
    let page = std::fs::read_to_string(top.join("docs/platforms.md")).unwrap();
    let (_, page) = page.split_once("## Which test holds what").unwrap();
    let is_there = |name: &str| {
        if name.starts_with("make ") || name == "dma-coherent" || name.starts_with("/dev/") || name == "/proc"
        {
            true
        } else if name.contains('/') {
            top.join(name).is_file()
        } else {
            ["(", "<"].iter().any(|mark| text.contains(&format!("fn {name}{mark}")))
        }
    };
    let numbers = (1..=8).map(|number| number.to_string());
    let pitfalls =
        (1..=10).map(|number| format!("g{number}")).chain((1..=8).map(|number| format!("h{number}")));
    let lines: Vec<String> = numbers.chain(pitfalls).chain(["bad input".to_owned()]).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let found = wrong(page, &lines, is_there);
    assert!(found.is_empty(), "docs/platforms.md:\n{}", found.join("\n"));
}

#[test]
fn a_table_that_lacks_something_is_told() {
    let page = "| line | what | held by |\n|---|---|---|\n| 1 | one | `there` |\n| 2 | two | **no**: why |\n";
    let there = |name: &str| name == "there";
    assert_eq!(wrong(page, &["1", "2"], there), [""; 0]);
    assert_eq!(wrong(page, &["1", "3"], there), ["no row of 3"]);
    assert_eq!(wrong("| 1 | one | `gone` |", &[], there), ["1, one: there is no gone"]);
    assert_eq!(wrong("| 1 | one | nobody |", &[], there), ["1, one: nothing holds it"]);
}

//! What docs/platforms.md promises of architectures and hypervisors, beside the tests that it
//! names: each is there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
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

/// Words of the table that are no tests.
fn is_word(name: &str) -> bool {
    name.starts_with("make ") || name.starts_with("/dev/") || ["dma-coherent", "/proc"].contains(&name)
}

/// The names of the tests of a source, and of the statements of the conformance suite.
fn tests(text: &str) -> HashSet<&str> {
    let (mut names, mut is_marked) = (HashSet::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_marked |= line.contains("test]") || line.contains("test(");
            continue;
        }
        let name = line.split_once("fn ").and_then(|(_, rest)| rest.split_once(['(', '<']));
        if let Some((name, rest)) = name
            && (is_marked || rest.starts_with("H: Hypervisor>("))
        {
            names.insert(name);
        }
        is_marked = false;
    }
    names
}

/// What is wrong with a table whose rows are an area, what is promised, and who holds it; each area
/// has so many rows at least.
fn wrong(page: &str, areas: &[(&str, usize)], is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut rows: Vec<[&str; 3]> = Vec::new();
    for row in page.lines().filter_map(|row| row.strip_prefix("| ")) {
        let cells: Vec<&str> = row.strip_suffix(" |").unwrap_or(row).split(" | ").collect();
        match cells.try_into() {
            Ok(cells) => rows.push(cells),
            Err(_) => found.push(format!("no three columns: {row}")),
        }
    }
    for (area, least) in areas {
        let count = rows.iter().filter(|[of, ..]| of == area).count();
        if count < *least {
            found.push(format!("{count} rows of {area}, and not {least}"));
        }
    }
    for [of, what, held] in rows.iter().filter(|[of, ..]| *of != "area") {
        let names: Vec<&str> = held.split('`').skip(1).step_by(2).filter(|name| !is_word(name)).collect();
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
    let tests = tests(&text);
    let is_there = |name: &str| {
        if name.contains('/') { top.join(name).is_file() } else { tests.contains(name) }
    };
    let areas = [
        ("portable code", 2),
        ("KVM on Arm", 8),
        ("kernel and image for Arm", 1),
        ("macOS back end", 3),
        ("macOS without a Mac", 4),
        ("conformance", 1),
        ("tests on Arm", 2),
        ("x86_64", 1),
        ("invalid input", 5),
        ("saved machines", 1),
        ("macOS, known problems", 10),
        ("Arm, known problems", 8),
    ];
    let found = wrong(page, &areas, is_there);
    assert!(found.is_empty(), "docs/platforms.md:\n{}", found.join("\n"));
}

#[test]
fn a_table_that_lacks_something_is_told() {
    let page = "| area | what | held by |\n|---|---|---|\n| 1 | one | `there` |\n| 2 | two | **no**: why |\n";
    let there = |name: &str| name == "there";
    assert_eq!(wrong(page, &[("1", 1), ("2", 1)], there), [""; 0]);
    assert_eq!(
        wrong(page, &[("1", 2), ("3", 1)], there),
        ["1 rows of 1, and not 2", "0 rows of 3, and not 1"]
    );
    assert_eq!(wrong("| 1 | one | `gone` |", &[], there), ["1, one: there is no gone"]);
    assert_eq!(wrong("| 1 | one | nobody |", &[], there), ["1, one: nothing holds it"]);
    assert_eq!(wrong("| 1 | one | by `make it` |", &[], there), ["1, one: nothing holds it"]);
    assert_eq!(wrong("| 1 | one | a | `there` |", &[], there).len(), 1);
    let text = "fn a() {}\n#[test]\nfn b() {}\nfn c<H: Hypervisor>(x: H) {}\n#[tokio::test]\n#[ignore]\nasync fn d() {}\n";
    assert_eq!(tests(text), HashSet::from(["b", "c", "d"]));
}

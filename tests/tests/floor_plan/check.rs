//! The plan held against the source: every way to break it gives a sentence.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::imports::{Source, sources};
use crate::plan::{Crate, FENCES, FOREIGN, KNOWING, SILENT};
use crate::tokens::{Kind, Token};

/// Everything in `top` that breaks the plan.
pub(crate) fn findings(top: &Path, crates: &[Crate]) -> Vec<String> {
    let mut found = Vec::new();
    for plan in crates {
        let directory = top.join(plan.directory);
        let sources = sources(&directory.join("src"));
        assert!(!sources.is_empty(), "{} has no source", plan.directory);
        for source in &sources {
            let mut report = |line: usize, what: String| {
                let file = source.file.strip_prefix(top).unwrap_or(&source.file);
                found.push(format!("{}:{line}: {what}", file.display()));
            };
            climbing(plan, source, &mut report);
            words(plan, source, &mut report);
            foreign(plan, source, &mut report);
            if !SILENT.iter().any(|(file, _)| source.file == top.join(file)) {
                silent_numbers(source, &mut report);
            }
        }
        found.extend(cycles(plan, &sources));
        let manifest = directory.join("Cargo.toml");
        let text =
            std::fs::read_to_string(&manifest).unwrap_or_else(|e| panic!("{}: {e}", manifest.display()));
        found.extend(
            dependencies(plan, &text)
                .into_iter()
                .map(|what| format!("{}/Cargo.toml: {what}", plan.directory)),
        );
    }
    found
}

/// Crates of the workspace that the plan does not know.
pub(crate) fn unplanned(top: &Path, crates: &[Crate]) -> Vec<String> {
    let text = std::fs::read_to_string(top.join("Cargo.toml")).unwrap();
    let members = text.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("");
    members
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|member| *member != "tests" && crates.iter().all(|plan| plan.directory != *member))
        .map(|member| format!("{member} is a member of the workspace without a place in the plan"))
        .collect()
}

fn floor(plan: &Crate, room: &str) -> Option<u8> {
    plan.floors.iter().find(|(name, _)| *name == room).map(|&(_, floor)| floor)
}

fn climbing(plan: &Crate, source: &Source, report: &mut impl FnMut(usize, String)) {
    if plan.floors.is_empty() {
        return;
    }
    // Programs of a library's `src/bin` stand on all of it.
    let Some(room) = source.module.first().filter(|room| *room != "bin") else { return };
    let Some(own) = floor(plan, room) else {
        return report(1, format!("room `{room}` has no floor"));
    };
    for import in source.imports() {
        let Some(other) = import.to.first().filter(|other| *other != room) else { continue };
        match floor(plan, other) {
            Some(theirs) if theirs < own => {}
            Some(theirs) => report(
                import.line,
                format!("`{room}` (floor {own}) imports `{}` (floor {theirs})", import.to.join("::")),
            ),
            None => {
                report(import.line, format!("`{room}` imports `{}`, which is no room", import.to.join("::")))
            }
        }
    }
}

/// Whether `module` lies in one of `rooms`.
fn within(module: &[String], rooms: &[&str]) -> bool {
    let path = module.join("::");
    rooms
        .iter()
        .any(|room| path.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}

fn words(plan: &Crate, source: &Source, report: &mut impl FnMut(usize, String)) {
    let tokens = &source.tokens;
    for (at, token) in tokens.iter().enumerate() {
        let Some(word) = token.word() else { continue };
        let next = |ahead: usize| tokens.get(at + ahead);
        let mut fences = FENCES.iter().filter(|(fenced, ..)| word == *fenced).peekable();
        if fences.peek().is_some()
            && !fences
                .clone()
                .any(|(_, directory, rooms)| plan.directory == *directory && within(&source.module, rooms))
        {
            let places: Vec<_> =
                fences.map(|(_, directory, rooms)| format!("{directory} {}", rooms.join(", "))).collect();
            report(token.line, format!("`{word}` outside {}", places.join(", ")));
        }
        let is_path = next(1).is_some_and(|next| next.kind == Kind::PathSep);
        if is_path && plan.never.iter().any(|package| package.replace('-', "_") == word) {
            report(token.line, format!("`{word}` in {}", plan.directory));
        }
        if word == "unsafe" && !within(&source.module, plan.unsafe_rooms) {
            report(token.line, format!("`unsafe` outside {}", plan.unsafe_rooms.join(", ")));
        }
        if word == "process"
            && is_path
            && next(2).is_some_and(|next| next.is_word("exit"))
            && !(plan.program || is_bin(source))
        {
            report(token.line, "`process::exit` in a library".to_owned());
        }
        if matches!(word, "cfg" | "cfg_attr") && asks_for_target(&tokens[at + 1..]) {
            let allowed = within(&source.module, plan.target_rooms);
            if !allowed {
                report(token.line, format!("`cfg(target_*)` outside {}", plan.target_rooms.join(", ")));
            }
        }
    }
}

/// Words of an architecture where none may be known.
fn foreign(plan: &Crate, source: &Source, report: &mut impl FnMut(usize, String)) {
    if KNOWING.iter().any(|room| is_in(plan.directory, source, room)) {
        return;
    }
    for (line, word, found) in words_of_an_architecture(source) {
        report(line, format!("`{word}`: `{found}` is a word of one architecture"));
    }
}

/// Whether a file is in a room that may know an architecture.
fn is_in(directory: &str, source: &Source, (of, room, below, _): &(&str, &str, bool, &str)) -> bool {
    directory == *of
        && if *below {
            room.is_empty() || within(&source.module, &[room])
        } else {
            source.module.join("::") == *room
        }
}

/// Lines and names of a file that hold a word of one architecture, with that word. Tests may.
fn words_of_an_architecture(source: &Source) -> Vec<(usize, &str, String)> {
    let is_test = |part: &String| part == "tests" || part.ends_with("_tests") || part == "testing";
    if source.module.iter().any(is_test) {
        return Vec::new();
    }
    // Tests at the end of a file.
    let end = source.tokens.windows(2).position(|pair| pair[0].is_word("mod") && pair[1].is_word("tests"));
    let tokens = &source.tokens[..end.unwrap_or(source.tokens.len())];
    let is_foreign = |part: &String| FOREIGN.contains(&part.as_str());
    let words = tokens.iter().filter_map(|token| token.word().map(|word| (token.line, word)));
    words
        .filter_map(|(line, word)| {
            parts_of_words(word).into_iter().find(is_foreign).map(|found| (line, word, found))
        })
        .collect()
}

/// Rooms that may know an architecture, and are not there or know none.
pub(crate) fn unused_knowledge(top: &Path) -> Vec<String> {
    let uses = |room: &(&str, &str, bool, &str)| {
        sources(&top.join(room.0).join("src"))
            .iter()
            .any(|source| is_in(room.0, source, room) && !words_of_an_architecture(source).is_empty())
    };
    let unused = KNOWING.iter().filter(|room| !uses(room));
    unused.map(|(of, room, ..)| format!("{of} {room} may know an architecture, and knows none")).collect()
}

/// The words that a name is made of, in small letters, and every two neighbours together: `io_apic`
/// and `IoApic` hold `ioapic`.
fn parts_of_words(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        if c == '_' || c.is_uppercase() && before.is_lowercase() {
            parts.push(String::new());
        }
        if c != '_'
            && let Some(last) = parts.last_mut()
        {
            last.extend(c.to_lowercase());
        }
        before = c;
    }
    let pairs: Vec<String> = parts.windows(2).map(|pair| pair.concat()).collect();
    parts.into_iter().chain(pairs).collect()
}

/// Conversions that give another number where one does not fit: `try_from(..)` or `try_into()`, an
/// `.ok()` perhaps, and then `.unwrap_or(..)` or `.unwrap_or_default()`.
fn silent_numbers(source: &Source, report: &mut impl FnMut(usize, String)) {
    let tokens = &source.tokens;
    for (at, token) in tokens.iter().enumerate() {
        let Some(convert @ ("try_from" | "try_into")) = token.word() else { continue };
        let Some(mut rest) = behind_parentheses(&tokens[at + 1..]) else { continue };
        if let [dot, ok, call @ ..] = rest
            && dot.is_mark('.')
            && ok.is_word("ok")
            && let Some(behind) = behind_parentheses(call)
        {
            // The conversion may be the whole of a closure, whose call ends here.
            let ends = behind.iter().take_while(|token| token.is_mark(')')).count();
            rest = &behind[ends..];
        }
        if let [dot, word, ..] = rest
            && dot.is_mark('.')
            && let Some(instead @ ("unwrap_or" | "unwrap_or_default")) = word.word()
        {
            report(
                token.line,
                format!(
                    "`{convert}(..).{instead}(..)` hides what does not fit: `fits`, `at_most` or an error"
                ),
            );
        }
    }
}

/// What follows the parentheses that `tokens` begin with.
fn behind_parentheses(tokens: &[Token]) -> Option<&[Token]> {
    let mut depth = 0;
    let end = tokens.iter().position(|token| {
        match token.kind {
            Kind::Mark('(') => depth += 1,
            Kind::Mark(')') => depth -= 1,
            _ => {}
        }
        depth <= 0
    })?;
    (end > 0).then(|| &tokens[end + 1..])
}

/// Files of `src/bin`, and `main.rs`, are programs.
fn is_bin(source: &Source) -> bool {
    source.file.ends_with("main.rs") || source.file.iter().any(|part| part == "bin")
}

/// Whether the condition in parentheses that follows (`!` before it, if it is a macro) names a
/// property of the target. For `cfg_attr` only what stands before the first comma at its own depth
/// would count, but nothing else there can be such a word.
fn asks_for_target(rest: &[Token]) -> bool {
    let rest = if rest.first().is_some_and(|token| token.is_mark('!')) { &rest[1..] } else { rest };
    if !rest.first().is_some_and(|token| token.is_mark('(')) {
        return false;
    }
    let mut depth = 0;
    for token in rest {
        match &token.kind {
            Kind::Mark('(') => depth += 1,
            Kind::Mark(')') => depth -= 1,
            // Not `target_feature`, which is no platform, nor anything behind the condition.
            Kind::Word(word) if word.starts_with("target_") => return true,
            _ => {}
        }
        if depth == 0 {
            return false;
        }
    }
    false
}

/// Cycles between the rooms of a crate, and between those of its halls. A room and the hall it lies
/// in may know each other, and tests may know everything.
fn cycles(plan: &Crate, sources: &[Source]) -> Vec<String> {
    let mut edges: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for source in sources {
        for import in source.imports() {
            let is_test = |part: &String| part == "tests" || part.ends_with("_tests") || part == "testing";
            if import.from.iter().chain(&import.to).any(is_test) {
                continue;
            }
            let shared = import.from.iter().zip(&import.to).take_while(|(a, b)| a == b).count();
            if shared > 1 || shared == 1 && !plan.halls.contains(&import.from[0].as_str()) {
                continue;
            }
            let (Some(from), Some(to)) = (import.from.get(..=shared), import.to.get(..=shared)) else {
                continue;
            };
            edges.entry(from.to_vec()).or_default().insert(to.to_vec());
        }
    }
    let mut found = Vec::new();
    let mut known: BTreeSet<Vec<Vec<String>>> = BTreeSet::new();
    for start in edges.keys() {
        if let Some(cycle) = cycle_from(start, &edges) {
            let mut members = cycle.clone();
            members.sort();
            members.dedup();
            if known.insert(members) {
                let names: Vec<String> = cycle.iter().map(|module| module.join("::")).collect();
                found.push(format!("{}: a cycle: {}", plan.directory, names.join(" → ")));
            }
        }
    }
    found
}

/// The shortest way from `start` back to itself.
fn cycle_from(
    start: &Vec<String>,
    edges: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
) -> Option<Vec<Vec<String>>> {
    let mut paths = std::collections::VecDeque::from([vec![start.clone()]]);
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop_front() {
        for next in path.last().and_then(|last| edges.get(last)).into_iter().flatten() {
            let longer: Vec<_> = path.iter().chain([next]).cloned().collect();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                paths.push_back(longer);
            }
        }
    }
    None
}

/// What a manifest asks for, held against the plan. Dependencies of tests are free.
fn dependencies(plan: &Crate, manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut names: Vec<(String, String)> = Vec::new();
    let (mut section, mut lints) = (String::new(), false);
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
            if let Some((kind, name)) = section.rsplit_once("dependencies.") {
                names.push((format!("{kind}dependencies"), name.to_owned()));
            }
        } else if let Some((name, _)) = line.split_once(['=', '.']) {
            lints |= section == "lints" && line.replace(' ', "") == "workspace=true";
            if section.ends_with("dependencies") {
                names.push((section.clone(), name.trim().trim_matches('"').to_owned()));
            }
        }
    }
    for (section, name) in names {
        if section.ends_with("dev-dependencies") {
            continue;
        }
        let ours = name.starts_with("nelly") || name.starts_with("containerd-shim-nelly");
        if ours && !plan.stands_on.contains(&name.as_str()) {
            found.push(format!("depends on {name}"));
        }
        if section == "build-dependencies" {
            continue;
        }
        if plan.never.contains(&name.as_str()) {
            found.push(format!("depends on {name}"));
        }
    }
    if !lints {
        found.push("does not take the lints of the workspace".to_owned());
    }
    found
}

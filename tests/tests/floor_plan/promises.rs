//! docs/threat-model.md promises nothing without a test: its table names a test for each boundary
//! and each confinement, and the tests are there, and are run.

use std::fs;
use std::path::Path;

use crate::tokens::tokens;

/// The heading of the table.
const TABLE: &str = "## Promises and their tests";
/// The heading of the list of boundaries.
const BOUNDARIES: &str = "## Boundaries, and who checks them";

/// A line of the table.
struct Row<'a> {
    boundary: &'a str,
    tests: Vec<(&'a str, &'a str)>,
}

/// What stands below a heading, up to the next one of its kind.
fn below<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(heading).unwrap_or_else(|| panic!("there is no {heading:?}"));
    rest.split("\n## ").next().unwrap_or_default()
}

/// The words in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn rows(text: &str) -> Vec<Row<'_>> {
    let lines = below(text, TABLE).lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = lines.map(|line| line.split('|').collect::<Vec<_>>());
    cells.filter_map(|cells| Some(row(cells.get(1)?, cells.get(3)?))).collect()
}

fn row<'a>(boundary: &'a str, tests: &'a str) -> Row<'a> {
    let (mut file, mut found) = ("", Vec::new());
    for word in quoted(tests) {
        // A path, or a function in the one before.
        if word.contains('/') {
            file = word;
        } else {
            found.push((file, word));
        }
    }
    Row { boundary: boundary.trim(), tests: found }
}

/// What has to have a line: what stands in bold at the start of each boundary, and the sections on
/// confinement and on containers.
fn boundaries(text: &str) -> Vec<&str> {
    let bold = below(text, BOUNDARIES).lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("- **")?.split_once("**")?;
        Some(name)
    });
    let sections = text.lines().filter_map(|line| line.strip_prefix("## "));
    let sections =
        sections.filter(|name| name.starts_with("Confinement of") || name.starts_with("Containers of"));
    bold.chain(sections).collect()
}

/// Whether the function of this name is marked as a test; `None` if there is none.
fn has_attribute(text: &str, name: &str) -> Option<bool> {
    let (call, generic) = (format!("fn {name}("), format!("fn {name}<"));
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mut at = (0..lines.len()).filter(|at| lines[*at].contains(&call) || lines[*at].contains(&generic));
    let first = at.next()?;
    let marked = |at: usize| {
        let above = lines[..at].iter().rev();
        let mut above = above.take_while(|line| ["#[", "//"].iter().any(|begin| line.starts_with(begin)));
        above.any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"))
    };
    Some(marked(first) || at.any(marked))
}

/// Whether a program with tests of its own, whose files lie here, has this one in a list: it is
/// named where it is neither made, nor called, nor imported.
fn is_listed(directory: &Path, name: &str) -> bool {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).any(|path| {
        if path.is_dir() {
            return is_listed(&path, name);
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            return false;
        }
        let tokens = tokens(&fs::read_to_string(path).unwrap_or_default());
        let mut imports = false;
        (0..tokens.len()).any(|at| {
            imports = tokens[at].is_word("use") || imports && !tokens[at].is_mark(';');
            tokens[at].is_word(name)
                && !imports
                && !at.checked_sub(1).is_some_and(|before| tokens[before].is_word("fn"))
                && !tokens.get(at + 1).is_some_and(|next| next.is_mark('('))
        })
    })
}

/// What is wrong with the document.
pub(crate) fn findings(top: &Path, text: &str) -> Vec<String> {
    let (rows, mut found) = (rows(text), Vec::new());
    let boundaries = boundaries(text);
    for boundary in &boundaries {
        if !rows.iter().any(|row| row.boundary == *boundary) {
            found.push(format!("{boundary:?} has no line in the table"));
        }
    }
    for Row { boundary, tests } in &rows {
        if !boundaries.contains(boundary) {
            found.push(format!("{boundary:?} is no boundary of the document"));
        }
        if tests.is_empty() {
            found.push(format!("a promise of {boundary:?} has no test"));
        }
        for (file, name) in tests {
            match fs::read_to_string(top.join(file)).ok().and_then(|text| has_attribute(&text, name)) {
                None => found.push(format!("{boundary:?}: there is no {name} in {file}")),
                Some(true) => {}
                Some(false) => {
                    let beside = top.join(file).parent().map(Path::to_owned).unwrap_or_default();
                    if !is_listed(&beside, name) {
                        found.push(format!("{boundary:?}: {name} in {file} is no test that is run"));
                    }
                }
            }
        }
    }
    found
}

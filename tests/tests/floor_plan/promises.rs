//! docs/threat-model.md promises nothing without a test: its table names a test for each boundary
//! and each confinement, and the tests are there.

use std::path::Path;

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
            let there = std::fs::read_to_string(top.join(file));
            let is = |text: String| {
                [format!("fn {name}("), format!("fn {name}<")].iter().any(|is| text.contains(is))
            };
            if !there.is_ok_and(is) {
                found.push(format!("{boundary:?}: there is no {name} in {file}"));
            }
        }
    }
    found
}

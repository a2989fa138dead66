//! A reader of Prometheus' text format 0.0.4 that takes nothing but what the format allows, for
//! tests.

use std::collections::{BTreeMap, BTreeSet};

/// Labels, in the order of their names.
type Labels = BTreeMap<String, String>;

/// What a text tells.
#[derive(Debug, Default)]
pub(crate) struct Scraped {
    /// The kind of each family.
    pub(crate) kinds: BTreeMap<String, String>,
    pub(crate) samples: Vec<(String, Labels, f64)>,
}

impl Scraped {
    /// The value of the one sample of a family that has these labels among others.
    pub(crate) fn value(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.all(family, labels);
        assert_eq!(found.len(), 1, "{family} {labels:?}: {found:?}");
        found[0]
    }

    pub(crate) fn all(&self, family: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let has = |all: &Labels| {
            labels.iter().all(|(name, value)| all.get(*name).is_some_and(|found| found == value))
        };
        let all = self.samples.iter().filter(|(name, all, _)| name == family && has(all));
        all.map(|(.., value)| *value).collect()
    }
}

fn is_name(text: &str, colons: bool) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    let rest = |c: char| first(c) || c.is_ascii_digit();
    text.starts_with(first) && text.chars().all(rest)
}

/// The labels of a text that begins behind their brace, and what follows the other one.
fn labels(mut text: &str) -> Result<(Labels, &str), String> {
    let mut all = Labels::new();
    loop {
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((all, rest));
        }
        let (name, rest) = text.split_once("=\"").ok_or("a label has no value")?;
        if !is_name(name, false) || name.starts_with("__") {
            return Err(format!("{name:?} is no name of a label"));
        }
        let (mut value, mut chars) = (String::new(), rest.chars());
        loop {
            match chars.next().ok_or("a value has no end")? {
                '"' => break,
                '\\' => value.push(match chars.next() {
                    Some('\\') => '\\',
                    Some('"') => '"',
                    Some('n') => '\n',
                    other => return Err(format!("{other:?} is not to be escaped")),
                }),
                c => value.push(c),
            }
        }
        if all.insert(name.to_owned(), value).is_some() {
            return Err(format!("the label {name} is there twice"));
        }
        text = chars.as_str();
        match text.strip_prefix(',') {
            Some(rest) => text = rest,
            None if text.starts_with('}') => {}
            None => return Err("labels are not divided by commas".into()),
        }
    }
}

/// Reads a text.
pub(crate) fn parse(text: &str) -> Result<Scraped, String> {
    let mut scraped = Scraped::default();
    let (mut helped, mut ended) = (BTreeSet::new(), BTreeSet::new());
    let mut series = BTreeSet::new();
    let mut now: Option<String> = None;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    for line in text.lines() {
        let fail = |why: &str| Err(format!("{why}: {line:?}"));
        if let Some(rest) = line.strip_prefix("# ") {
            let (word, rest) = rest.split_once(' ').ok_or("a comment of one word")?;
            let (name, rest) = rest.split_once(' ').ok_or("a name alone")?;
            if !is_name(name, true) {
                return fail("no name");
            }
            if now.as_deref() != Some(name) {
                ended.extend(now.replace(name.to_owned()));
            }
            if ended.contains(name) {
                return fail("a family in two places");
            }
            match word {
                "HELP" if rest.is_empty() || !helped.insert(name.to_owned()) => {
                    return fail("a second or no HELP");
                }
                "HELP" => {}
                "TYPE" if !["counter", "gauge"].contains(&rest) => return fail("no type that is told here"),
                "TYPE" if (rest == "counter") != name.ends_with("_total") => {
                    return fail("no name of its type");
                }
                "TYPE" if scraped.kinds.insert(name.to_owned(), rest.to_owned()).is_some() => {
                    return fail("a second TYPE");
                }
                "TYPE" => {}
                _ => return fail("neither HELP nor TYPE"),
            }
            continue;
        }
        let (name, rest) = line.split_at(line.find(['{', ' ']).ok_or("a sample without a value")?);
        if now.as_deref() != Some(name) || !scraped.kinds.contains_key(name) || !helped.contains(name) {
            return fail("a sample that is not with its family");
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Labels::new(), rest),
        };
        let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
        let Ok(number) = value.parse::<f64>() else { return fail("no number") };
        if !value.starts_with(|c: char| c.is_ascii_digit()) || !number.is_finite() {
            return fail("no number that is counted");
        }
        if !series.insert((name.to_owned(), labels.clone())) {
            return fail("the same sample twice");
        }
        scraped.samples.push((name.to_owned(), labels, number));
    }
    Ok(scraped)
}

//! `nelly image ls`.

use std::process::ExitCode;

use anyhow::Result;
use nelly_image::{ImagePlan, SourceError, StoredImage};
use serde_json::json;

use super::args::LsArgs;
use super::{disks, local, size, store};
use crate::context::Context;
use crate::fail::Usage;
use crate::{out, table};

/// Hexadecimal digits of a short id.
const SHORT: usize = 12;

/// A condition of `--filter`.
#[derive(Debug, PartialEq, Eq)]
enum Filter {
    Dangling(bool),
    Reference(String),
    Label(String, Option<String>),
}

fn filter(word: &str) -> Result<Filter> {
    match word.split_once('=') {
        Some(("dangling", "true")) => Ok(Filter::Dangling(true)),
        Some(("dangling", "false")) => Ok(Filter::Dangling(false)),
        Some(("reference", pattern)) => Ok(Filter::Reference(pattern.to_owned())),
        Some(("label", label)) => Ok(match label.split_once('=') {
            Some((key, value)) => Filter::Label(key.to_owned(), Some(value.to_owned())),
            None => Filter::Label(label.to_owned(), None),
        }),
        _ => Err(Usage::error(format!(
            "--filter {word:?} is none of dangling=true, dangling=false, reference=PATTERN and label=KEY[=VALUE]"
        ))),
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any characters and `?` for one.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut here) = (0, 0);
    // Where the last star is, and how much of the text it took.
    let mut star: Option<(usize, usize)> = None;
    while here < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(c) if *c == '?' || *c == text[here] => {
                at += 1;
                here += 1;
            }
            _ => match &mut star {
                Some((place, taken)) => {
                    *taken += 1;
                    (at, here) = (*place + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

impl Filter {
    fn takes(&self, image: &StoredImage, plan: Option<&ImagePlan>) -> bool {
        match self {
            Self::Dangling(wanted) => image.name.is_none() == *wanted,
            Self::Reference(pattern) => image.name.as_ref().is_some_and(|name| {
                [name.familiar(), name.familiar_repository(), name.canonical(), name.repository()]
                    .iter()
                    .any(|form| fits(pattern, form))
            }),
            Self::Label(key, value) => plan.is_some_and(|plan| {
                let labels = plan.config.config().as_ref().and_then(|config| config.labels().as_ref());
                labels
                    .and_then(|labels| labels.get(key))
                    .is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
            }),
        }
    }
}

/// Runs the verb.
pub(super) fn ls(args: &LsArgs, context: &Context) -> Result<ExitCode> {
    let filters = args.filter.iter().map(|word| filter(word)).collect::<Result<Vec<_>>>()?;
    let (local, store) = (local(context)?, store(context)?);
    let mut rows = Vec::new();
    for image in local.list()? {
        // An image for another platform is listed without its size and date, and so is a damaged
        // one, of which somebody should hear.
        let plan = match store.plan_stored(&image.descriptor.digest) {
            Ok(plan) => Some(plan),
            Err(error) => {
                let error = anyhow::Error::from(error);
                let foreign = |cause: &SourceError| matches!(cause, SourceError::Platform { .. });
                if !error.chain().filter_map(|cause| cause.downcast_ref()).any(foreign) {
                    out::message(format!("{error:#}"));
                }
                None
            }
        };
        if filters.iter().all(|filter| filter.takes(&image, plan.as_ref())) {
            rows.push((image, plan));
        }
    }
    // Disks have nothing that a condition could be for.
    let disks = if filters.is_empty() { disks::all(context)? } else { Vec::new() };
    let id = |image: &StoredImage| {
        let hex = image.descriptor.digest.hex();
        if args.no_trunc { image.descriptor.digest.to_string() } else { hex.chars().take(SHORT).collect() }
    };
    let stored = |plan: &Option<ImagePlan>| {
        plan.as_ref().map(|plan| plan.layers.iter().map(|layer| layer.size).sum::<u64>())
    };
    let created = |plan: &Option<ImagePlan>| plan.as_ref().and_then(|plan| plan.config.created().clone());
    if args.json {
        let rows = rows.iter().map(|(image, plan)| {
            json!({ "schema": 1, "kind": "image", "id": image.descriptor.digest.to_string(),
                "name": image.name.as_ref().map(|name| name.familiar()),
                "canonical_name": image.name.as_ref().map(|name| name.canonical()),
                "media_type": image.descriptor.media_type, "created": created(plan),
                "layers_bytes": stored(plan), "cached": plan.as_ref().map(|plan| plan.cached) })
        });
        out::json(serde_json::Value::Array(rows.chain(disks.iter().map(disks::row)).collect()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        let mut seen = std::collections::HashSet::new();
        for (image, _) in rows.iter().filter(|(image, _)| seen.insert(image.descriptor.digest)) {
            out::line(id(image))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let none = || "<none>".to_owned();
    let mut table = vec![["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"].map(str::to_owned)];
    for (image, plan) in &rows {
        let repository = image.name.as_ref().map_or_else(none, |name| name.familiar_repository());
        let tag = image.name.as_ref().filter(|name| name.digest().is_none());
        let tag = tag.map_or_else(none, |name| name.tag().unwrap_or("latest").to_owned());
        let day = created(plan).map_or_else(|| "-".to_owned(), |time| time.chars().take(10).collect());
        let bytes = stored(plan).map_or_else(|| "-".to_owned(), size);
        table.push([repository, tag, id(image), day, bytes]);
    }
    for line in table::aligned(&table) {
        out::line(line)?;
    }
    if !disks.is_empty() {
        out::line("")?;
        disks::print(&disks, args.no_trunc)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("app", "app", true),
            ("app", "apps", false),
            ("*", "", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("*/app:?", "x.io/app:1", true),
            ("*/app:?", "x.io/app:12", false),
            ("**a*b*", "xxaybz", true),
            ("a*bc*d", "abbcbcd", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn filters_that_are_none_say_what_there_is() {
        assert_eq!(filter("label=a=b=c").unwrap(), Filter::Label("a".into(), Some("b=c".into())));
        assert_eq!(filter("label=a").unwrap(), Filter::Label("a".into(), None));
        for word in ["", "dangling", "dangling=maybe", "size=3"] {
            assert!(filter(word).unwrap_err().to_string().contains("reference=PATTERN"), "{word}");
        }
    }
}

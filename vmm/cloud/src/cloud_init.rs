//! Whether cloud-init in an image would read a seed, as far as the image's files say.

use nelly_disk::fs::list;

use crate::layout::Image;

/// The directory of cloud-init's settings.
const TOP: &str = "/etc/cloud";
/// Most files in its directory of further settings.
const FILES_MAX: usize = 64;

/// What keeps cloud-init in the image from a seed; nothing where nothing is seen.
pub(crate) fn notes(image: &Image<'_>, command_line: &str) -> Vec<String> {
    let text = |path: &str| {
        let (slot, path) = image.locate(path)?;
        image.text(slot, &path)
    };
    let disabled = |by: &str| format!("cloud-init in the image is disabled ({by}), so it reads no seed");
    let mut notes = Vec::new();
    if command_line.split_whitespace().any(|word| word == "cloud-init=disabled") {
        notes.push(disabled("cloud-init=disabled on the command line"));
    }
    let file = format!("{TOP}/cloud-init.disabled");
    if text(&file).is_some() {
        notes.push(disabled(&file));
    }
    let identify = text(&format!("{TOP}/ds-identify.cfg")).unwrap_or_default();
    let policy = value(&identify, "policy:");
    if policy.as_deref().is_some_and(|policy| policy.split(',').any(|word| word == "disabled")) {
        notes.push(disabled(&format!("policy: disabled in {TOP}/ds-identify.cfg")));
    }
    if let Some((file, list)) = sources(image, &text)
        && !list.contains("NoCloud")
    {
        notes.push(format!(
            "cloud-init in the image asks only {list} ({file}), and a seed is a data source NoCloud"
        ));
    }
    notes
}

/// The list of data sources that counts, in which file: the last one's, by name.
fn sources(image: &Image<'_>, text: &dyn Fn(&str) -> Option<String>) -> Option<(String, String)> {
    let further = format!("{TOP}/cloud.cfg.d");
    let names = image.locate(&further).and_then(|(slot, path)| list(image.volume(slot)?, &path).ok()?);
    let mut names: Vec<_> = names.unwrap_or_default();
    names.retain(|name| name.ends_with(".cfg"));
    names.sort();
    let files = names.iter().rev().take(FILES_MAX).map(|name| format!("{further}/{name}"));
    files.chain([format!("{TOP}/cloud.cfg")]).find_map(|file| {
        let list = value(&text(&file)?, "datasource_list:")?;
        // One that goes on in further lines is not read, and says nothing here.
        list.starts_with('[').then_some((file, list))
    })
}

/// What stands behind a key at the beginning of a line: the last one's.
fn value(text: &str, key: &str) -> Option<String> {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(key));
    let value = values.next_back()?.split(" #").next().unwrap_or_default().trim();
    (!value.is_empty()).then(|| value.chars().filter(|letter| !letter.is_control()).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_last_line_that_has_the_key() {
        let list = "# datasource_list: [ None ]\ndatasource_list: [ Azure ] # of the cloud\n x: 1\n";
        assert_eq!(value(list, "datasource_list:").as_deref(), Some("[ Azure ]"));
        assert_eq!(value("policy: search\npolicy: disabled\n", "policy:").as_deref(), Some("disabled"));
        for none in ["", "policy:\n", " policy: disabled\n", "policy"] {
            assert_eq!(value(none, "policy:"), None, "{none:?}");
        }
    }
}

//! Boot Loader Specification (UAPI.1), type 1: a file an entry, as Fedora's GRUB and systemd-boot
//! read them.

use std::cmp::Ordering;

use crate::grubenv::Variables;
use crate::version;

/// An entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlsEntry {
    /// The file's name without `.conf` and the counters of tries.
    pub id: String,
    /// `title`, or else the id.
    pub title: String,
    /// `version`.
    pub version: String,
    /// `sort-key`.
    pub sort_key: String,
    /// `machine-id`.
    pub machine_id: String,
    /// `linux`.
    pub linux: String,
    /// `initrd`, of all lines and words in order.
    pub initrds: Vec<String>,
    /// `options`, of all lines.
    pub options: Option<String>,
    /// `devicetree`.
    pub devicetree: Option<String>,
    /// `architecture`.
    pub architecture: String,
    /// It was tried as often as it may be, and never said that it works.
    pub failed: bool,
}

/// Reads one entry, of the file called `name`; `None` for what boots no Linux kernel.
#[must_use]
pub fn parse(name: &str, text: &str) -> Option<BlsEntry> {
    let stem = name.strip_suffix(".conf")?;
    // `NAME+LEFT-DONE`: tries that are left.
    let (id, left) = match stem.rsplit_once('+') {
        Some((id, tries)) if tries.chars().all(|c| c.is_ascii_digit() || c == '-') => {
            (id, tries.split('-').next())
        }
        _ => (stem, None),
    };
    let mut entry = BlsEntry { id: id.to_owned(), failed: left == Some("0"), ..BlsEntry::default() };
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((key, value)) = line.split_once(char::is_whitespace) else { continue };
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.title),
            "version" => value.clone_into(&mut entry.version),
            "sort-key" => value.clone_into(&mut entry.sort_key),
            "machine-id" => value.clone_into(&mut entry.machine_id),
            "linux" => value.clone_into(&mut entry.linux),
            "architecture" => value.clone_into(&mut entry.architecture),
            "devicetree" => entry.devicetree = Some(value.to_owned()),
            "initrd" => entry.initrds.extend(value.split_whitespace().map(ToOwned::to_owned)),
            "options" => {
                let all = entry.options.get_or_insert_default();
                if !all.is_empty() {
                    all.push(' ');
                }
                all.push_str(value);
            }
            _ => {}
        }
    }
    if entry.title.is_empty() {
        entry.title.clone_from(&entry.id);
    }
    let other = !matches!(entry.architecture.to_ascii_lowercase().as_str(), "" | "x64" | "x86_64" | "x86-64");
    (!entry.linux.is_empty() && !other).then_some(entry)
}

impl BlsEntry {
    /// Whether it is the entry for repairs that dracut makes.
    #[must_use]
    pub fn rescue(&self) -> bool {
        self.id.contains("-0-rescue") || self.version.starts_with("0-rescue")
    }

    /// Puts variables of the boot loader into what it says.
    #[must_use]
    pub fn expanded(mut self, variables: &Variables) -> Self {
        let common = || {
            let named = ["default_kernelopts", "kernelopts"];
            named.iter().find_map(|name| variables.get(*name)).cloned().unwrap_or_default()
        };
        self.options = Some(expand(&self.options.take().unwrap_or_else(common), variables));
        self.linux = expand(&self.linux, variables);
        let initrds = std::mem::take(&mut self.initrds);
        let words = initrds.iter().map(|file| expand(file, variables));
        self.initrds = words
            .flat_map(|file| file.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>())
            .collect();
        self
    }
}

/// Replaces `$name` and `${name}`; a variable that is not set is nothing.
fn expand(text: &str, variables: &Variables) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        let braced = behind.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, after) = braced.unwrap_or_else(|| {
            let end = behind.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(behind.len());
            behind.split_at(end)
        });
        if name.is_empty() {
            out.push('$');
        }
        out.push_str(variables.get(name).map_or("", String::as_str));
        rest = after;
    }
    out.push_str(rest);
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Sorts entries as a menu has them, the first being the default: the newest first, those that
/// failed and those for repairs last.
pub fn sort(entries: &mut [BlsEntry]) {
    entries.sort_by(|a, b| {
        let last = |entry: &BlsEntry| (entry.failed, entry.rescue());
        let keyed = (!a.sort_key.is_empty()).cmp(&!b.sort_key.is_empty()).reverse();
        let keys = if a.sort_key.is_empty() || b.sort_key.is_empty() {
            Ordering::Equal
        } else {
            let newer = version::compare(&b.version, &a.version);
            a.sort_key.cmp(&b.sort_key).then_with(|| a.machine_id.cmp(&b.machine_id)).then(newer)
        };
        last(a).cmp(&last(b)).then(keyed).then(keys).then_with(|| version::compare(&b.id, &a.id))
    });
}

/// The entry that `wanted` names: by its id, with or without `.conf`, its title, or its place.
#[must_use]
pub fn select(entries: &[BlsEntry], wanted: &str) -> Option<usize> {
    let stem = wanted.strip_suffix(".conf").unwrap_or(wanted);
    let named = entries.iter().position(|entry| entry.id == stem || entry.title == wanted);
    named.or_else(|| wanted.parse().ok().filter(|index| *index < entries.len()))
}

/// Whether `text` matches `pattern`, in which `*` and `?` stand for others, as in `default` of
/// loader.conf.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    (p, t) = (at + 1, from + 1);
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Fedora's kernel-install writes it.
    const FEDORA: &str = "title Fedora Linux (6.8.5-301.fc40.x86_64) 40 (Cloud Edition)\nversion 6.8.5-301.fc40.x86_64\nlinux /vmlinuz-6.8.5-301.fc40.x86_64\ninitrd /intel-ucode.img\ninitrd /initramfs-6.8.5-301.fc40.x86_64.img $tuned_initrd\noptions $kernelopts $tuned_params\noptions console=ttyS0,115200n8\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n";

    #[test]
    fn an_entry_of_fedora_takes_its_variables() {
        let entry = parse("0123-6.8.5-301.fc40.x86_64.conf", FEDORA).unwrap();
        assert_eq!(entry.version, "6.8.5-301.fc40.x86_64");
        let variables = Variables::from([("kernelopts".into(), "root=UUID=ab ro ".into())]);
        let entry = entry.expanded(&variables);
        assert_eq!(entry.options.as_deref(), Some("root=UUID=ab ro console=ttyS0,115200n8"));
        assert_eq!(entry.initrds, ["/intel-ucode.img", "/initramfs-6.8.5-301.fc40.x86_64.img"]);
        // Without options of its own it has the common ones.
        let bare = parse("a.conf", "linux /x\n").unwrap().expanded(&variables);
        assert_eq!((bare.options.as_deref(), bare.title.as_str()), (Some("root=UUID=ab ro"), "a"));
        assert_eq!(expand("a$ ${none}b$1", &variables), "a$ b");
    }

    #[test]
    fn what_boots_no_kernel_here_is_no_entry() {
        for (name, text) in [
            ("a", "linux /x\n"),
            ("a.conf", "efi /x.efi\n"),
            ("a.conf", ""),
            ("a.conf", "linux /x\narchitecture aa64\n"),
        ] {
            assert_eq!(parse(name, text), None, "{name} {text}");
        }
    }

    #[test]
    fn the_newest_is_first_and_rescue_is_last() {
        let make = |name: &str, text: &str| parse(name, &format!("linux /x\n{text}")).unwrap();
        let mut entries = vec![
            make("m-0-rescue-m.conf", "version 0-rescue-m"),
            make("m-6.8.5-1.fc40.conf", ""),
            make("m-6.10.1-1.fc40.conf", ""),
            make("m-6.9.1-1.fc40+0-3.conf", ""),
            make("m-6.9.0-1.fc40+2-1.conf", ""),
        ];
        sort(&mut entries);
        let order: Vec<_> = entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(
            order,
            ["m-6.10.1-1.fc40", "m-6.9.0-1.fc40", "m-6.8.5-1.fc40", "m-0-rescue-m", "m-6.9.1-1.fc40"]
        );
        assert_eq!(select(&entries, "m-6.8.5-1.fc40.conf"), Some(2));
        assert_eq!(
            (select(&entries, "1"), select(&entries, "7"), select(&entries, "")),
            (Some(1), None, None)
        );
        let mut keyed = vec![
            make("b.conf", "sort-key debian\nversion 6.1"),
            make("z.conf", ""),
            make("a.conf", "sort-key debian\nversion 6.12"),
        ];
        sort(&mut keyed);
        assert_eq!(keyed.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["a", "b", "z"]);
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, text, is) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("?b", "ab", true),
            ("deb-*.conf", "deb-6.1.conf", true),
            ("", "x", false),
            ("*a*a*a*b", &"a".repeat(200), false),
        ] {
            assert_eq!(matches(pattern, text), is, "{pattern} {text}");
        }
    }
}

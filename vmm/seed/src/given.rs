//! Texts of the user's own, which go into a seed as they are.

use saphyr_parser::{Event, Parser};

use crate::error::SeedError;

/// Bytes of a text at most.
pub const TEXT_MAX: usize = 16 << 20;

/// How user data begins that cloud-init knows (`INCLUSION_TYPES_MAP` in its handlers), in small
/// letters; a word ends there. It takes capitals and space before them, too.
const HEADS: &[&str] = &[
    "#cloud-config",
    "#cloud-config-archive",
    "#cloud-config-jsonp",
    "#cloud-boothook",
    "#part-handler",
    "#include",
    "#include-once",
    "## template: jinja",
];
/// The same, where anything may follow.
const BEGINNINGS: &[&str] = &["#!", "content-type:", "from nobody "];
/// What makes it a mail, with parts, in its first [`HEADER`] bytes (`convert_string` of
/// `user_data.py`).
const MAIL: &str = "mime-version:";
const HEADER: usize = 4096;
/// How gzip begins.
const GZIP: &[u8] = &[0x1f, 0x8b];

/// Checks that cloud-init will know what this user data is. Otherwise it warns in its log, and the
/// machine comes up as if there were none.
///
/// # Errors
/// It does not begin as any kind of user data does, is a `#cloud-config` that is no mapping of
/// YAML, or has more than 16 MiB.
pub fn check_user_data(data: &[u8]) -> Result<(), SeedError> {
    size(data)?;
    // Nothing is to be done, which is a wish, too.
    if data.is_empty() || data.starts_with(GZIP) {
        return Ok(());
    }
    let head = String::from_utf8_lossy(&data[..data.len().min(HEADER)]);
    let small = head.to_lowercase();
    let start = small.trim_start();
    let is_word = |rest: &str| rest.is_empty() || rest.starts_with(char::is_whitespace);
    let known = HEADS.iter().any(|head| start.strip_prefix(head).is_some_and(is_word))
        || BEGINNINGS.iter().any(|beginning| start.starts_with(beginning))
        || small.contains(MAIL);
    if known {
        let is_config = start.strip_prefix(HEADS[0]).is_some_and(is_word);
        // With parts of a mail behind it, it is a mail.
        return if is_config && !small.contains(MAIL) { check_config(data) } else { Ok(()) };
    }
    let line = head.trim_start().lines().next().unwrap_or_default();
    let hint = if line.starts_with('\u{feff}') {
        "; the file begins with a byte order mark, which has to go"
    } else if line.replace(' ', "").eq_ignore_ascii_case("#cloud-config") {
        "; #cloud-config has no spaces"
    } else {
        ""
    };
    let shown: String = line.chars().take(60).collect();
    Err(SeedError::Text(format!(
        "is no user data: its first line is {shown:?}, and not #cloud-config, #! or another one that cloud-init knows{hint}"
    )))
}

/// Checks that cloud-init can read a `#cloud-config`.
fn check_config(data: &[u8]) -> Result<(), SeedError> {
    let text = std::str::from_utf8(data).map_err(|_| SeedError::Text("is no text in UTF-8".to_owned()))?;
    match parsed(text)? {
        // Comments alone: nothing is to be done.
        None | Some(Kind::Mapping) => Ok(()),
        Some(Kind::Other) => Err(SeedError::Text(
            "is a #cloud-config, and what follows is no mapping of YAML (lines as `packages: [curl]`)"
                .to_owned(),
        )),
    }
}

/// What the first document of a text in YAML is.
enum Kind {
    Mapping,
    Other,
}

/// Reads YAML to its end; anchors are not followed, so that it costs what its length says.
fn parsed(text: &str) -> Result<Option<Kind>, SeedError> {
    let mut kind = None;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| {
            let at = error.marker();
            let (line, column) = (at.line(), at.col() + 1);
            SeedError::Text(format!("is no YAML: line {line}, column {column}: {}", error.info()))
        })?;
        kind = kind.or(match event {
            Event::MappingStart(..) => Some(Kind::Mapping),
            Event::Scalar(value, ..) if value == "~" => None,
            Event::Scalar(..) | Event::SequenceStart(..) | Event::Alias(..) => Some(Kind::Other),
            _ => None,
        });
    }
    Ok(kind)
}

/// Checks metadata or a network configuration: text, so that it can be YAML or JSON.
///
/// # Errors
/// It is empty, not UTF-8, no YAML, or has more than 16 MiB.
pub fn check_yaml(data: &[u8]) -> Result<(), SeedError> {
    size(data)?;
    let text = std::str::from_utf8(data).map_err(|_| SeedError::Text("is no text in UTF-8".to_owned()))?;
    if text.trim().is_empty() {
        return Err(SeedError::Text("is empty".to_owned()));
    }
    // YAML 1.1, section 5.1: what a stream may have.
    if let Some(index) = text.find(|c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')) {
        let line = text[..index].matches('\n').count() + 1;
        return Err(SeedError::Text(format!("has a control character in line {line}, and is no YAML")));
    }
    parsed(text).map(drop)
}

fn size(data: &[u8]) -> Result<(), SeedError> {
    if data.len() > TEXT_MAX {
        return Err(SeedError::TooLarge { bytes: data.len() as u64, most: TEXT_MAX as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_known_by_its_beginning() {
        for good in [
            "",
            "#cloud-config\n",
            "#cloud-config",
            "#cloud-config \r\npackages: [curl]\n",
            "#!/bin/sh\necho\n",
            "#include\nhttp://example.org/\n",
            "## template: jinja\n#cloud-config\n",
            "Content-Type: multipart/mixed; boundary=\"x\"\n",
            "MIME-Version: 1.0\n",
            "content-type: text/cloud-config\nmime-version: 1.0\n",
            "From: me\nMIME-Version: 1.0\n",
            "\n  #Cloud-Config # of the web server\n",
            "#cloud-boothook\n",
        ] {
            assert_eq!(check_user_data(good.as_bytes()), Ok(()), "{good:?}");
        }
        assert_eq!(check_user_data(b"\x1f\x8b\x08\x00"), Ok(()));
        for (bad, what) in [
            ("packages: [curl]\n", "\"packages: [curl]\""),
            ("# cloud-config\n", "has no spaces"),
            ("\u{feff}#cloud-config\n", "byte order mark"),
            ("\n\n", "\"\""),
            ("#cloud-configuration\n", "#cloud-configuration"),
            ("#included\n", "#included"),
        ] {
            let error = check_user_data(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(what) && error.starts_with("is no user data"), "{bad:?}: {error}");
        }
        let error = check_user_data(&[0xff; 1000]).unwrap_err().to_string();
        assert!(error.len() < 400, "{error}");
        assert!(matches!(check_user_data(&vec![0; TEXT_MAX + 1]), Err(SeedError::TooLarge { .. })));
    }

    #[test]
    fn a_cloud_config_is_a_mapping_of_yaml() {
        for good in [
            "#cloud-config\n# nothing\n",
            "#cloud-config\n---\nusers:\n- default\n- {name: ada, sudo: 'ALL=(ALL) NOPASSWD:ALL'}\n",
            "#cloud-config\nwrite_files:\n- path: /etc/motd\n  content: |\n    {{ not a template }}\n    a: b: c\n",
            "#cloud-config\nruncmd:\n  - [sh, -c, \"echo 'a: b' > /x\"]\n  - &x |\n   y\n  - *x\n",
            "#cloud-config\n{\"packages\": [\"curl\"]}\n",
        ] {
            assert_eq!(check_user_data(good.as_bytes()), Ok(()), "{good:?}");
        }
        for (bad, what) in [
            ("#cloud-config\npackages: [curl\n", "is no YAML: line "),
            ("#cloud-config\nusers:\n\t- default\n", "is no YAML: line 3"),
            ("#cloud-config\nruncmd:\n- echo a: b\n c: d\n", "is no YAML: line 4"),
            ("#cloud-config\napt install curl\n", "no mapping of YAML"),
            ("#cloud-config\n- curl\n", "no mapping of YAML"),
        ] {
            let error = check_user_data(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(what), "{bad:?}: {error}");
        }
        assert!(check_user_data(b"#cloud-config\na: \xff\n").is_err());
        // Nothing is expanded, and depth costs memory alone.
        let deep = format!("#cloud-config\na: {}", "[".repeat(1 << 16));
        assert!(check_user_data(deep.as_bytes()).is_err());
        let mut bomb = "#cloud-config\na0: &a0 [x]\n".to_owned();
        for level in 1..64 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert_eq!(check_user_data(bomb.as_bytes()), Ok(()));
    }

    #[test]
    fn metadata_is_text() {
        assert_eq!(check_yaml(b"instance-id: a\nlocal-hostname: b\r\n"), Ok(()));
        assert!(check_yaml(b"a: [\n").unwrap_err().to_string().contains("is no YAML: line "));
        for (bad, what) in
            [(&b""[..], "empty"), (b" \n", "empty"), (b"\xff", "UTF-8"), (b"a\nb\x07\n", "line 2")]
        {
            let error = check_yaml(bad).unwrap_err().to_string();
            assert!(error.contains(what), "{bad:?}: {error}");
        }
    }
}

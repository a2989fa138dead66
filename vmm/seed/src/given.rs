//! Texts of the user's own, which go into a seed as they are.

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
/// It does not begin as any kind of user data does, or has more than 16 MiB.
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
        return Ok(());
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

/// Checks metadata or a network configuration: text, so that it can be YAML or JSON.
///
/// # Errors
/// It is empty, not UTF-8, has control characters that YAML does not, or more than 16 MiB.
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
    Ok(())
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
    fn metadata_is_text() {
        assert_eq!(check_yaml(b"instance-id: a\n\tb\r\n"), Ok(()));
        for (bad, what) in
            [(&b""[..], "empty"), (b" \n", "empty"), (b"\xff", "UTF-8"), (b"a\nb\x07\n", "line 2")]
        {
            let error = check_yaml(bad).unwrap_err().to_string();
            assert!(error.contains(what), "{bad:?}: {error}");
        }
    }
}

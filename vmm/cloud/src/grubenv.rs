//! GRUB's environment block: 1024 bytes of `name=value` lines behind a line that says what it is.

use std::collections::HashMap;

/// Variables by name.
pub type Variables = HashMap<String, String>;

const SIGNATURE: &str = "# GRUB Environment Block\n";

/// The variables of an environment block; none when it is none.
#[must_use]
pub fn parse(bytes: &[u8]) -> Variables {
    let text = String::from_utf8_lossy(bytes);
    let Some(mut rest) = text.strip_prefix(SIGNATURE) else { return Variables::new() };
    let mut variables = Variables::new();
    while !rest.is_empty() {
        let (line, behind) = line(rest);
        rest = behind;
        // A line of nothing but `#` fills the block; others are comments.
        if line.starts_with('#') {
            continue;
        }
        if let Some((name, value)) = line.split_once('=') {
            variables.insert(name.to_owned(), value.to_owned());
        }
    }
    variables
}

/// The first line, in which a backslash keeps the next character, and what follows it.
fn line(text: &str) -> (String, &str) {
    let mut line = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\n' => return (line, &text[at + 1..]),
            '\\' => line.extend(characters.next().map(|(_, c)| c)),
            c => line.push(c),
        }
    }
    (line, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_anything_else_is_none() {
        let block = "# GRUB Environment Block\n# WARNING: no comment here\nsaved_entry=a-6.1\nkernelopts=root=UUID=1 ro\\\nquiet \\\\\nboot_success=1\n#####";
        let variables = parse(block.as_bytes());
        assert_eq!(variables["saved_entry"], "a-6.1");
        assert_eq!(variables["kernelopts"], "root=UUID=1 ro\nquiet \\");
        assert_eq!(variables["boot_success"], "1");
        assert_eq!(variables.len(), 3);
        for other in [&b""[..], b"saved_entry=x\n", b"# GRUB Environment Block", &[0; 1024]] {
            assert!(parse(other).is_empty());
        }
    }
}

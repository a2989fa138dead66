//! Text that people read on a terminal. Names inside images, what a guest says and paths of other
//! users come into messages: none of it may steer the terminal, forge a line of ours, or turn the
//! order of what is read around.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write as _;

/// Whether a terminal shows this character and does nothing else: no control character (of C0, DEL,
/// C1), no separator of lines, nothing that turns the direction of text or is not to be seen.
#[must_use]
pub fn is_plain(c: char) -> bool {
    let hidden = matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    !hidden && !c.is_control()
}

/// One line: every character that is not plain stands as its escape, newlines too.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_plain, |line, c| line.extend(c.escape_default()))
}

/// A text whose newlines are meant. Everything else as in [`line`].
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n' || is_plain(c), |lines, c| lines.extend(c.escape_default()))
}

/// JSON that is equal and plain. A serializer need not escape what stands beyond ASCII, and a
/// string is the only place where it can stand.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    escaped(
        text,
        |c| c == '\n' || is_plain(c),
        |json, c| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(json, "\\u{unit:04x}");
            }
        },
    )
}

fn escaped(text: &str, plain: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if text.chars().all(&plain) {
        return Cow::Borrowed(text);
    }
    let mut whole = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if plain(c) { whole.push(c) } else { escape(&mut whole, c) }
    }
    Cow::Owned(whole)
}

/// An error and its causes in one sentence, without a cause that the sentence ends with already.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let sentence = cause.to_string();
        if !text.ends_with(&sentence) {
            text.push_str(": ");
            text.push_str(&sentence);
        }
        below = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        assert_eq!(
            line("a name: ä, 日本, \u{1f600}, 'quoted' \\ back"),
            "a name: ä, 日本, \u{1f600}, 'quoted' \\ back"
        );
        // Retitles, clears, ends the sequence by BEL; CSI of C1; DEL; a carriage return over what
        // was said.
        assert_eq!(line("\x1b]0;root\x07\x1b[2J"), "\\u{1b}]0;root\\u{7}\\u{1b}[2J");
        assert_eq!(line("\u{9b}2J\u{7f}\r"), "\\u{9b}2J\\u{7f}\\r");
        // A line that would look like ours, and text that is read backwards.
        assert_eq!(line("x\nnelly: all is well\t!"), "x\\nnelly: all is well\\t!");
        assert_eq!(
            line("\u{202e}txt.exe\u{2066}\u{200f}\u{2028}"),
            "\\u{202e}txt.exe\\u{2066}\\u{200f}\\u{2028}"
        );
        assert_eq!(lines("one\n\x1btwo\r\n"), "one\n\\u{1b}two\\r\n");
        assert!(
            (0..=u32::from(char::MAX))
                .filter_map(char::from_u32)
                .all(|c| line(&c.to_string()).chars().all(is_plain))
        );
    }

    #[test]
    fn json_stays_what_it_was() {
        let value = serde_json::json!({ "name": "a\u{9b}\u{202e}\u{e0041}\x1b\x7f\nä" });
        let text = format!("{value:#}");
        let plain = json(&text);
        assert!(plain.chars().all(|c| c == '\n' || is_plain(c)), "{plain}");
        assert!(plain.contains(r"\u009b") && plain.contains(r"\udb40\udc41"), "{plain}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).unwrap(), value);
    }

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Sentence(&'static str, #[source] Option<Box<Sentence>>);
        let error = Sentence("no such file", None);
        let error = Sentence("cannot open /k: no such file", Some(Box::new(error)));
        let error = Sentence("boot", Some(Box::new(error)));
        assert_eq!(chain(&error), "boot: cannot open /k: no such file");
    }
}

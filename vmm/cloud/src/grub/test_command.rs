//! GRUB's `test`.

use std::cmp::Ordering;

use super::FileKind;
use crate::version;

/// Deepest parentheses and negations.
const DEPTH_MAX: u32 = 20;

/// Whether the words of `test` hold; `None` when it is no sound test. `kind` tells what is at a
/// path.
pub(super) fn test(words: &[String], kind: &dyn Fn(&str) -> Option<FileKind>) -> Option<bool> {
    let mut test = Test { words, at: 0, kind, depth: 0 };
    let value = test.any()?;
    (test.at == words.len()).then_some(value)
}

struct Test<'a> {
    words: &'a [String],
    at: usize,
    kind: &'a dyn Fn(&str) -> Option<FileKind>,
    depth: u32,
}

impl<'a> Test<'a> {
    fn peek(&self, ahead: usize) -> Option<&'a str> {
        self.words.get(self.at + ahead).map(String::as_str)
    }

    fn any(&mut self) -> Option<bool> {
        let mut value = self.all()?;
        while self.peek(0) == Some("-o") {
            self.at += 1;
            value |= self.all()?;
        }
        Some(value)
    }

    fn all(&mut self) -> Option<bool> {
        let mut value = self.one()?;
        // `-a` may be left out.
        while self.at < self.words.len() && !matches!(self.peek(0), Some("-o" | ")")) {
            if self.peek(0) == Some("-a") {
                self.at += 1;
            }
            value &= self.one()?;
        }
        Some(value)
    }

    fn one(&mut self) -> Option<bool> {
        let Some(first) = self.peek(0) else { return (self.words.is_empty()).then_some(false) };
        if let (Some(operator), Some(right)) = (self.peek(1), self.peek(2))
            && let Some(value) = compare(first, operator, right)
        {
            self.at += 3;
            return Some(value);
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return None;
        }
        let value = match (first, self.peek(1)) {
            ("!", Some(_)) => {
                self.at += 1;
                !self.one()?
            }
            ("(", Some(_)) => {
                self.at += 1;
                let value = self.any()?;
                (self.peek(0) == Some(")")).then_some(())?;
                self.at += 1;
                value
            }
            ("-z" | "-n" | "-e" | "-f" | "-d" | "-s", Some(word)) => {
                self.at += 2;
                match first {
                    "-z" => word.is_empty(),
                    "-n" => !word.is_empty(),
                    "-e" => (self.kind)(word).is_some(),
                    "-f" => matches!((self.kind)(word), Some(FileKind::File(_))),
                    "-d" => (self.kind)(word) == Some(FileKind::Directory),
                    _ => matches!((self.kind)(word), Some(FileKind::File(size)) if size > 0),
                }
            }
            // `-n` and others without a word are words.
            (word, _) => {
                self.at += 1;
                !word.is_empty()
            }
        };
        self.depth -= 1;
        Some(value)
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
    let numbers = || number(left).cmp(&number(right));
    let (order, wanted): (Ordering, &[Ordering]) = match operator {
        "=" | "==" => return Some(left == right),
        "!=" => return Some(left != right),
        "<" => (left.cmp(right), &[Ordering::Less]),
        "<=" => (left.cmp(right), &[Ordering::Less, Ordering::Equal]),
        ">" => (left.cmp(right), &[Ordering::Greater]),
        ">=" => (left.cmp(right), &[Ordering::Greater, Ordering::Equal]),
        "-eq" => (numbers(), &[Ordering::Equal]),
        "-ne" => return Some(numbers() != Ordering::Equal),
        "-lt" => (numbers(), &[Ordering::Less]),
        "-le" => (numbers(), &[Ordering::Less, Ordering::Equal]),
        "-gt" => (numbers(), &[Ordering::Greater]),
        "-ge" => (numbers(), &[Ordering::Greater, Ordering::Equal]),
        "-pgt" | "-plt" => {
            let order = version::compare(left, right);
            (order, if operator == "-pgt" { &[Ordering::Greater] } else { &[Ordering::Less] })
        }
        _ => return None,
    };
    Some(wanted.contains(&order))
}

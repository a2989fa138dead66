//! Sentences about what a copy left out, of which a guest may cause any number.

use std::fmt::Display;

use crate::out;

/// Sentences that are said; more are only counted.
const MOST: usize = 16;

/// Bytes of a sentence.
const SENTENCE_MOST: usize = 4096;

/// Says the first ones, and at the end how many more there were.
pub(super) struct Notes<F: FnMut(&str)> {
    say: F,
    count: usize,
}

/// Those that go to standard error.
pub(super) fn notes() -> Notes<impl FnMut(&str)> {
    Notes::new(|sentence: &str| out::message(sentence))
}

impl<F: FnMut(&str)> Notes<F> {
    fn new(say: F) -> Self {
        Self { say, count: 0 }
    }

    /// Says a sentence, or counts it.
    pub(super) fn add(&mut self, sentence: impl Display) {
        self.count += 1;
        if self.count <= MOST {
            let sentence = sentence.to_string();
            (self.say)(&sentence[..sentence.floor_char_boundary(SENTENCE_MOST)]);
        }
    }

    /// Says how many were not said.
    pub(super) fn finish(mut self) {
        if self.count > MOST {
            let more = self.count - MOST;
            (self.say)(&format!("{more} more of such sentences are left out"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_are_said_and_the_rest_is_counted() {
        for (count, expected) in [(0, 0), (16, 16), (17, 17), (1000, 17)] {
            let mut said = Vec::new();
            let mut notes = Notes::new(|sentence: &str| said.push(sentence.to_owned()));
            (0..count).for_each(|number| notes.add(number));
            notes.finish();
            assert_eq!(said.len(), expected);
            if count > MOST {
                assert!(said[MOST].starts_with(&format!("{} more", count - MOST)), "{}", said[MOST]);
            }
        }
        let mut said = String::new();
        Notes::new(|sentence: &str| said.push_str(sentence)).add("ä".repeat(70_000));
        assert_eq!(said, "ä".repeat(2048));
    }
}

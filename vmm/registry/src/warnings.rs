//! What a user should know although it was no failure.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

const WHOLE: &str = "nobody panics while holding it";

/// Sentences that nobody has read yet. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What was warned of: of four layers at once, each would say the same.
    subjects: HashSet<String>,
    unread: Vec<String>,
}

impl Warnings {
    /// Adds a sentence, unless there was one about the same subject.
    pub(crate) fn add(&self, subject: &str, sentence: impl FnOnce() -> String) {
        let mut state = self.0.lock().expect(WHOLE);
        if state.subjects.insert(subject.to_owned()) {
            let sentence = sentence();
            state.unread.push(sentence);
        }
    }

    /// The sentences since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect(WHOLE).unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_is_warned_of_once() {
        let warnings = Warnings::default();
        for (subject, sentence) in [("a", "first"), ("b", "second"), ("a", "third")] {
            warnings.clone().add(subject, || sentence.to_owned());
        }
        assert_eq!(warnings.take(), ["first", "second"]);
        warnings.add("a", || "fourth".to_owned());
        assert!(warnings.take().is_empty());
    }
}

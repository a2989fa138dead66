//! Answers that are kept, so that a question is asked once.

use std::collections::HashMap;

use super::table::Time;
use crate::dns::{Lifetime, Query};

/// No more answers are kept.
const MOST: usize = 1024;
/// No longer ones, in bytes.
const MOST_BYTES: usize = 2048;

#[derive(Debug)]
struct Kept {
    message: Vec<u8>,
    life: Lifetime,
    since: Time,
}

impl Kept {
    fn until(&self) -> Time {
        self.since + Time::from_secs(self.life.seconds.into())
    }
}

/// What is kept. Questions are the same if all of their bytes are but their number and capitals.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<Vec<u8>, Kept>);

impl Cache {
    /// Keeps an answer to a question, if it may be kept.
    pub(super) fn keep(&mut self, now: Time, query: &Query, question: &[u8], message: &[u8]) {
        if message.len() > MOST_BYTES || question.len() > MOST_BYTES {
            return;
        }
        let Some(life) = Lifetime::of(message) else { return };
        if self.0.len() >= MOST {
            let soonest = self.0.values().map(Kept::until).min().unwrap_or(now).max(now);
            self.0.retain(|_, kept| kept.until() > soonest);
        }
        self.0.insert(query.same(question), Kept { message: message.to_vec(), life, since: now });
    }

    /// The answer to a question that is still good, with what is left of its times.
    pub(super) fn find(&self, now: Time, query: &Query, question: &[u8]) -> Option<Vec<u8>> {
        let kept = self.0.get(&query.same(question)).filter(|kept| kept.until() > now)?;
        let gone = u32::try_from(now.saturating_sub(kept.since).as_secs()).ok()?;
        let mut message = kept.message.clone();
        for &at in &kept.life.times {
            let time = message.get_mut(at..at + 4)?;
            let left = u32::from_be_bytes(*time.first_chunk()?).saturating_sub(gone);
            time.copy_from_slice(&left.to_be_bytes());
        }
        query.sign(question, &mut message);
        Some(message)
    }

    /// Forgets everything: others are asked now.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: u8) -> Vec<u8> {
        [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, name][..], &[0, 0, 1, 0, 1]].concat()
    }

    fn answer(question: &[u8], seconds: u32) -> Vec<u8> {
        let mut out = question.to_vec();
        (out[2], out[7]) = (0x81, 1);
        out.extend([0xc0, 12, 0, 1, 0, 1]);
        out.extend(seconds.to_be_bytes());
        out.extend([0, 4, 1, 2, 3, 4]);
        out
    }

    #[test]
    fn an_answer_is_given_again_with_the_time_that_is_left() {
        let mut cache = Cache::default();
        let (small, large) = (question(b'a'), question(b'A'));
        let query = Query::parse(&small).unwrap();
        cache.keep(Time::from_secs(5), &query, &small, &answer(&small, 60));
        let mut other = large.clone();
        other[..2].copy_from_slice(&[9, 9]);
        let found = cache.find(Time::from_secs(15), &Query::parse(&other).unwrap(), &other).unwrap();
        assert_eq!(found, answer(&other, 50), "as it was asked, with its number and capitals");
        assert!(cache.find(Time::from_secs(64), &query, &small).is_some());
        assert!(cache.find(Time::from_secs(65), &query, &small).is_none());
        // What was asked in another way is another question.
        let mut checked = small.clone();
        checked[3] |= 0x10;
        assert!(cache.find(Time::from_secs(6), &query, &checked).is_none());
        cache.clear();
        assert!(cache.find(Time::from_secs(6), &query, &small).is_none());
    }

    #[test]
    fn so_many_are_kept_and_the_last_is_among_them() {
        let mut cache = Cache::default();
        for number in 0..5000_u32 {
            let mut question = question(b'a');
            let [.., high, low] = number.to_be_bytes();
            question.extend([high, low]);
            let query = Query::parse(&question).unwrap();
            let now = Time::from_millis(number.into());
            cache.keep(now, &query, &question, &answer(&self::question(b'a'), 60));
            assert!(cache.0.len() <= MOST);
            assert!(cache.find(now, &query, &question).is_some());
        }
        let long = [question(b'a'), vec![0; MOST_BYTES]].concat();
        let query = Query::parse(&long).unwrap();
        cache.keep(Time::ZERO, &query, &long, &answer(&question(b'a'), 60));
        assert!(cache.find(Time::ZERO, &query, &long).is_none());
    }
}

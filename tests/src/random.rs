//! What tests of random moments share: numbers that a seed repeats, and amounts that `make soak`
//! makes larger.

use std::time::SystemTime;

/// A sequence of numbers that looks random (xorshift).
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of the seed in the variable of the environment `variable`, or else of one that
    /// the clock gives. The seed is printed.
    ///
    /// # Panics
    /// What the variable says is no number.
    #[must_use]
    pub fn seeded(variable: &str) -> Self {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let seed = number(variable).unwrap_or(u64::from(clock.subsec_nanos()));
        println!("{variable}={seed}");
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next one, from 0 to below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// One of these.
    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(choices.len() as u64)).expect("an index");
        &choices[index]
    }
}

/// A number of the environment, if it is there.
///
/// # Panics
/// What is there is no number.
#[must_use]
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

//! What tests of a [`Stateful`] have in common.

use super::{Section, Sections, StateError, Stateful};

/// What tests call a device.
pub const NAME: &str = "device";

/// What `saved` says, through the form of a file.
///
/// # Panics
/// When what was written cannot be read.
#[must_use]
pub fn written(saved: &dyn Stateful) -> Sections {
    let mut state = Sections::new();
    saved.save(NAME, &mut state);
    Sections::decode(&state.encode()).expect("what was written can be read")
}

/// Restores `fresh` from what [`written`] returned, or something like it.
///
/// # Errors
/// As of [`Stateful::restore`], or it did not take everything.
pub fn restore(fresh: &mut dyn Stateful, mut state: Sections) -> Result<(), StateError> {
    fresh.restore(NAME, &mut state)?;
    state.finish()
}

/// Restores `fresh` from what `saved` says.
///
/// # Errors
/// As of [`restore`].
///
/// # Panics
/// When what was restored says something else than what was saved.
pub fn carry(saved: &dyn Stateful, fresh: &mut dyn Stateful) -> Result<(), StateError> {
    let state = written(saved);
    restore(fresh, state.clone())?;
    assert!(written(fresh) == state, "what was restored says what it was told");
    Ok(())
}

/// Restores fresh ones from what `saved` says, damaged in every place: what is cut off, too long,
/// missing or of another version is refused; a byte of another value is refused, or gives something
/// that `used` may do anything to.
///
/// # Panics
/// When something panics, or takes what it must refuse.
pub fn refuses_damage<T: Stateful>(
    saved: &dyn Stateful,
    fresh: impl Fn() -> T,
    mut used: impl FnMut(&mut T),
) {
    let sound = written(saved);
    for (n, section) in sound.0.iter().enumerate() {
        let with = |change: &dyn Fn(&mut Section)| {
            let mut state = sound.clone();
            change(&mut state.0[n]);
            state
        };
        let refused = |state| restore(&mut fresh(), state).expect_err("damage is refused").to_string();
        assert!(refused(with(&|section| section.version += 1)).contains("version"));
        refused(with(&|section| section.name.push('x')));
        refused(with(&|section| section.bytes.push(0)));
        for len in 0..section.bytes.len() {
            refused(with(&|section| section.bytes.truncate(len)));
        }
        for (at, byte) in section.bytes.iter().enumerate() {
            for value in [0, 2, 0xff, byte ^ 1, byte ^ 0x40] {
                let mut device = fresh();
                if restore(&mut device, with(&|section| section.bytes[at] = value)).is_ok() {
                    used(&mut device);
                }
            }
        }
    }
}

//! Which register a load or store transfers, found out by what KVM makes of it: KVM tells the
//! width and the data of an access, not its register.
//!
//! Of a store, each register that holds the data is as good as any other: who serves the access
//! reads the data from it. Of a load, KVM is answered with a word that no register would become by
//! chance; the register that has become it is the load's, and how it was widened shows too.

/// X0 to X30.
pub type Registers = [u64; 31];

/// The zero register.
pub const ZERO: u8 = 31;

/// The lowest `width` bytes.
fn mask(width: u8) -> u64 {
    if width >= 8 { u64::MAX } else { (1 << (8 * width)) - 1 }
}

/// A register whose lowest `width` bytes are these, or [`ZERO`]; `None` if there is none, which no
/// store can come from.
pub fn stored<E>(
    mut register: impl FnMut(u8) -> Result<u64, E>,
    data: u64,
    width: u8,
) -> Result<Option<u8>, E> {
    if data & mask(width) == 0 {
        return Ok(Some(ZERO));
    }
    for number in 0..ZERO {
        if register(number)? & mask(width) == data & mask(width) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// What a load did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Its register.
    pub register: u8,
    /// It copied its highest bit into all above.
    pub signed: bool,
    /// Into all of 64 bits.
    pub wide: bool,
}

/// What loads of a word of this width can leave in a register: as it is, signed to 32 and to 64
/// bits.
fn outcomes(word: u64, width: u8) -> [(u64, bool, bool); 3] {
    let filled = word | !mask(width);
    [(word, false, width == 8), (filled & 0xffff_ffff, true, false), (filled, true, true)]
}

/// A word of `width` bytes, its highest bit set, that no load leaves in a register as the register
/// is now.
#[must_use]
pub fn marker(before: &Registers, width: u8) -> u64 {
    let highest = 1 << (8 * u32::from(width.clamp(1, 8)) - 1);
    // Each register rules out three of these at most.
    let candidates = (1..=0x7f).map(|low| highest | low);
    let fits = |word: &u64| {
        let outcomes = outcomes(*word, width);
        before.iter().all(|value| outcomes.iter().all(|(outcome, ..)| outcome != value))
    };
    candidates.into_iter().find(fits).expect("of 127 candidates 31 registers rule out 93 at most")
}

/// What a load did that KVM was answered with `marker`; `None` if it did what no load does.
#[must_use]
pub fn loaded(before: &Registers, after: &Registers, marker: u64, width: u8) -> Option<Load> {
    let mut changed = (0u8..).zip(before.iter().zip(after)).filter(|(_, (before, after))| before != after);
    let Some((register, (_, value))) = changed.next() else {
        return Some(Load { register: ZERO, signed: false, wide: width == 8 });
    };
    let (_, signed, wide) = outcomes(marker, width).into_iter().find(|(outcome, ..)| outcome == value)?;
    changed.next().is_none().then_some(Load { register, signed, wide })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn registers() -> impl Strategy<Value = Registers> {
        prop::array::uniform31(prop_oneof![any::<u64>(), 0x80u64..0x100, 0xffff_ffff_ffff_ff80..=u64::MAX])
    }

    #[test]
    fn a_store_of_nothing_is_one_of_the_zero_register() {
        let never = |_: u8| -> Result<u64, ()> { unreachable!() };
        assert_eq!(stored(never, 0xab00, 1), Ok(Some(ZERO)));
        let holds = |number: u8| Ok::<_, ()>(if number == 7 { 0xff_1234 } else { 0x12 });
        assert_eq!(stored(holds, 0x1234, 2), Ok(Some(7)));
        assert_eq!(stored(holds, 0x1235, 2), Ok(None));
    }

    #[test]
    fn what_no_load_does_is_found() {
        let before = [0; 31];
        let word = marker(&before, 4);
        assert_eq!(loaded(&before, &before, word, 4).map(|load| load.register), Some(ZERO));
        let mut after = before;
        after[3] = word + 1;
        assert_eq!(loaded(&before, &after, word, 4), None);
        after[3] = word;
        after[4] = word;
        assert_eq!(loaded(&before, &after, word, 4), None);
    }

    proptest! {
        /// Whatever the registers hold, a load is told from all others.
        #[test]
        fn a_load_is_recognised(before in registers(), register in 0u8..31, size in 0u32..4, way in 0usize..3) {
            let width = 1 << size;
            let word = marker(&before, width);
            prop_assert_eq!(word & !mask(width), 0);
            let (value, signed, wide) = outcomes(word, width)[if size == 3 { 0 } else { way }];
            let mut after = before;
            after[usize::from(register)] = value;
            let expected = if size == 2 && way == 1 {
                // Four bytes that are signed to four are the same as unsigned ones.
                Load { register, signed: false, wide: false }
            } else {
                Load { register, signed, wide }
            };
            prop_assert_eq!(loaded(&before, &after, word, width), Some(expected));
        }

        #[test]
        fn a_stores_register_holds_its_data(values in registers(), register in 0u8..31, size in 0u32..4) {
            let width = 1 << size;
            let data = values[usize::from(register)] & mask(width);
            let found = stored(|number| Ok::<_, ()>(values[usize::from(number)]), data, width).unwrap().unwrap();
            let value = if found == ZERO { 0 } else { values[usize::from(found)] };
            prop_assert_eq!(value & mask(width), data);
        }
    }
}

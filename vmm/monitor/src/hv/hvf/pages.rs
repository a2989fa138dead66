//! What of a slot the framework takes: whole pages of 16 KiB inside the addresses of the machine.
//! (Host addresses are in whole pages by being mapped on such a host.) Pure.

use super::super::SlotRefused;

/// A page of Apple silicon's hosts.
pub(super) const PAGE: u64 = 16 << 10;

/// Checks a slot: its guest physical address and its bytes, in a machine whose guest physical
/// addresses have so many bits.
pub(super) fn check(guest: u64, len: u64, address_bits: u32) -> Result<(), SlotRefused> {
    if len == 0 || [guest, len].iter().any(|value| !value.is_multiple_of(PAGE)) {
        return Err(SlotRefused::Unaligned);
    }
    let limit = 1u64.checked_shl(address_bits).unwrap_or(u64::MAX);
    match guest.checked_add(len) {
        Some(end) if end <= limit => Ok(()),
        _ => Err(SlotRefused::Beyond),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_are_whole_pages_of_16_kib() {
        let ram = 0x8000_0000;
        for (guest, len, expected) in [
            (ram, PAGE, Ok(())),
            (ram, (1 << 36) - ram, Ok(())),
            (ram, 0, Err(SlotRefused::Unaligned)),
            // Pages of 4 KiB, as other hosts have them.
            (ram + 0x1000, PAGE, Err(SlotRefused::Unaligned)),
            (ram, 0x1000, Err(SlotRefused::Unaligned)),
            (ram, 1 << 36, Err(SlotRefused::Beyond)),
            (0u64.wrapping_sub(PAGE), PAGE, Err(SlotRefused::Beyond)),
        ] {
            assert_eq!(check(guest, len, 36), expected, "{guest:#x} {len:#x}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_aligned_and_inside(guest: u64, len: u64, bits in 30u32..65, whole: bool) {
            let round = |value: u64| if whole { value & !(PAGE - 1) } else { value };
            let (guest, len) = (round(guest >> 8), round(len >> 8));
            if check(guest, len, bits).is_ok() {
                let limit = 1u128.checked_shl(bits).unwrap();
                prop_assert!(u128::from(guest) + u128::from(len) <= limit);
                prop_assert!(guest % PAGE == 0 && len % PAGE == 0 && len > 0);
            }
        }
    }
}

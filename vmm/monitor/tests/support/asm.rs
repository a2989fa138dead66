//! Guests of a few instructions, assembled into the test.

/// Defines `fn $name() -> &'static [u8]`: these instructions (Intel syntax, 64-bit unless they say
/// otherwise).
macro_rules! guest {
    ($name:ident, $($line:expr),* $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".globl guest_", stringify!($name), "_start"),
            concat!(".globl guest_", stringify!($name), "_end"),
            concat!("guest_", stringify!($name), "_start:"),
            $($line),*,
            concat!("guest_", stringify!($name), "_end:"),
            ".code64",
            ".popsection",
        );
        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("guest_", stringify!($name), "_start")]
                static START: u8;
                #[link_name = concat!("guest_", stringify!($name), "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both labels are in the same section of this program, with the assembled bytes
            // between them.
            unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
        }
    };
}
pub(crate) use guest;

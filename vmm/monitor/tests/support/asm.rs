//! Guests of a few instructions, assembled into the test.

/// What follows a guest's instructions, which may have left another mode on.
#[cfg(target_arch = "x86_64")]
macro_rules! own_mode {
    () => {
        ".code64"
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! own_mode {
    () => {
        ".balign 4"
    };
}
pub(crate) use own_mode;

/// Defines `fn $name() -> &'static [u8]`: these instructions (a PC's in Intel syntax, 64-bit
/// unless they say otherwise).
macro_rules! guest {
    ($name:ident, $($line:expr),* $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            ".balign 4",
            concat!(".globl guest_", stringify!($name), "_start"),
            concat!(".globl guest_", stringify!($name), "_end"),
            concat!("guest_", stringify!($name), "_start:"),
            $($line),*,
            concat!("guest_", stringify!($name), "_end:"),
            $crate::asm::own_mode!(),
            ".popsection",
        );
        pub(crate) fn $name() -> &'static [u8] {
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

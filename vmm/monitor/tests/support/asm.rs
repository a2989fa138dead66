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

/// Where they lie among the program's constants, and what C's names begin with: in ELF and in
/// Mach-O, whose linker takes an end for the beginning of something else unless it is told.
#[cfg(not(target_os = "macos"))]
macro_rules! form {
    (section) => {
        ".pushsection .rodata"
    };
    (name $name:ident $end:literal) => {
        concat!("guest_", stringify!($name), $end)
    };
    (end $name:ident) => {
        ""
    };
}
#[cfg(target_os = "macos")]
macro_rules! form {
    (section) => {
        ".pushsection __TEXT,__const"
    };
    (name $name:ident $end:literal) => {
        concat!("_guest_", stringify!($name), $end)
    };
    (end $name:ident) => {
        concat!(".alt_entry _guest_", stringify!($name), "_end")
    };
}
pub(crate) use form;

/// Defines `fn $name() -> &'static [u8]`: these instructions (a PC's in Intel syntax, 64-bit
/// unless they say otherwise).
macro_rules! guest {
    ($name:ident, $($line:expr),* $(,)?) => {
        std::arch::global_asm!(
            $crate::asm::form!(section),
            ".balign 4",
            concat!(".globl ", $crate::asm::form!(name $name "_start")),
            concat!(".globl ", $crate::asm::form!(name $name "_end")),
            $crate::asm::form!(end $name),
            concat!($crate::asm::form!(name $name "_start"), ":"),
            $($line),*,
            concat!($crate::asm::form!(name $name "_end"), ":"),
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

//! The heap of a program that ends with a sentence where the host has no memory.
//!
//! The standard library raises SIGABRT then, which looks like a fault of the program.

#![allow(unsafe_code, reason = "an allocator hands out what the system's one does")]

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's heap. What it cannot fulfil ends the process, with a line on standard error and an
/// exit code: for programs none of whose parts goes on without memory that it asked for.
#[derive(Debug)]
pub struct Heap {
    /// The line's beginning: the program's name, and a colon.
    pub program: &'static str,
    /// The exit code.
    pub code: u8,
}

impl Heap {
    fn given(&self, place: *mut u8, bytes: usize) -> *mut u8 {
        if place.is_null() {
            self.end(bytes);
        }
        place
    }

    #[cold]
    fn end(&self, bytes: usize) -> ! {
        let mut digits = [0; 20];
        let mut rest = bytes;
        let mut first = digits.len();
        while rest > 0 || first == digits.len() {
            first -= 1;
            digits[first] = b'0' + u8::try_from(rest % 10).expect("it is a digit");
            rest /= 10;
        }
        let pieces =
            [self.program.as_bytes(), b" the host has no memory for ", &digits[first..], b" bytes more\n"];
        let mut line = [0; 128];
        let mut len = 0;
        for byte in pieces.into_iter().flatten().take(line.len()) {
            line[len] = *byte;
            len += 1;
        }
        // SAFETY: the bytes are there. Nothing else of this process runs on: no destructor, no
        // handler of exit, both of which may ask for memory.
        unsafe {
            libc::write(2, line.as_ptr().cast(), len);
            libc::_exit(self.code.into());
        }
    }
}

// SAFETY: all of it is the system's heap, whose rules the callers keep.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        self.given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        self.given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller's.
        self.given(unsafe { System.realloc(place, layout, size) }, size)
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(place, layout) }
    }
}

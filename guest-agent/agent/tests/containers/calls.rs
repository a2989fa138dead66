#![allow(unsafe_code, reason = "system calls by their numbers, as a program in a container makes them")]
//! This test as a program in a container: it makes the system calls that its arguments name, and
//! says what the kernel answers.

use nelly_agent::arch;
use serde_json::{Value, json};

/// The word that makes this program what this file is about.
pub(crate) const WORD: &str = "call";

/// Where it lies in a container.
const PLACE: &str = "/calls";

/// Makes each call, `NAME` or `NAME:ARGUMENT,...` with numbers in hexadecimal, and prints a line
/// `NAME RESULT` for it: an error is negative.
pub(crate) fn make(calls: impl Iterator<Item = String>) {
    for call in calls {
        let (name, rest) = call.split_once(':').unwrap_or((&call, ""));
        let number = arch::syscall_number(name).expect("a name of a system call");
        let mut arguments = [0; 6];
        let given = rest.split(',').filter(|word| !word.is_empty());
        for (slot, word) in arguments.iter_mut().zip(given) {
            *slot = u64::from_str_radix(word, 16).expect("a number in hexadecimal");
        }
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: the tests ask for calls that are refused, or that take no pointer but null.
        let result = unsafe { libc::syscall(number.into(), a, b, c, d, e, f) };
        let result = if result < 0 {
            -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or_default())
        } else {
            result
        };
        println!("{name} {result}");
    }
}

/// Makes these calls the program of `spec`. This test is linked against the machine's C library:
/// the container gets that, too.
pub(crate) fn program(mut spec: Value, calls: &[&str]) -> Value {
    let words: Vec<_> = [PLACE, WORD].iter().chain(calls).collect();
    spec["process"]["args"] = json!(words);
    let own = std::env::current_exe().unwrap();
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": PLACE, "type": "bind", "source": own, "options": ["bind", "ro"]}));
    libraries(mounts);
    spec
}

/// Mounts of the machine's libraries, for its programs.
pub(crate) fn libraries(mounts: &mut Vec<Value>) {
    for directory in ["/lib", "/lib64", "/usr/lib"] {
        if std::path::Path::new(directory).exists() {
            mounts.push(json!({"destination": directory, "type": "bind", "source": directory, "options": ["rbind", "ro"]}));
        }
    }
}

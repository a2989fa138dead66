//! What the tests share: a reader of EROFS that knows nothing of the writer, and makers of tars and
//! layouts.
#![allow(missing_docs, unreachable_pub, reason = "test support")]
#![allow(clippy::cast_possible_truncation, reason = "test data is small")]

pub mod erofs;
pub mod hostile;
pub mod image;
pub mod tarball;

use std::path::Path;
use std::process::Command;

/// Runs a program and gives its standard output; it must succeed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program} (is its package installed?): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// The judgement of erofs-utils.
pub fn fsck(image: &Path) {
    run("fsck.erofs", &[image.to_str().unwrap()]);
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

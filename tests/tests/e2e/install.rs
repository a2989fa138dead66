//! An installed tree: it runs from where it lies, by a symbolic link, with nothing of the checkout.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nelly_tests::{Done, run, top};

use super::LIMIT;
use super::keeper::{Kept, kill};

/// The program at `path`, with an environment that names no part of an installation.
#[track_caller]
fn installed(path: &Path, home: &Path, words: &[&str]) -> Done {
    let mut command = Command::new(path);
    command.args(words).current_dir(home).env_clear().env("PATH", "/usr/bin:/bin").env("NELLY_HOME", home);
    run(&mut command, b"", LIMIT)
}

#[test]
fn a_sandbox_of_an_installed_tree_has_a_unit_and_is_started_again_after_its_keeper() {
    let kept = Kept::new();
    let (home, prefix) = (kept.0.path(), kept.0.path().join("an other/nelly"));
    let mut install = Command::new(top().join("packaging/install"));
    install.env("PREFIX", &prefix).env_remove("DESTDIR");
    run(&mut install, b"", LIMIT).expect(0);
    let link = home.join("nelly");
    symlink(prefix.join("bin/nelly"), &link).unwrap();
    let nelly = |words: &[&str]| installed(&link, home, words);

    nelly(&["run", "-d", "--name", "box", "--restart", "always", "--", "sleep", "1000"]).expect(0);
    assert_eq!(nelly(&["exec", "box", "echo", "hi"]).expect(0).out(), "hi\n");
    let record = kept.record();
    let monitor = record["machine"]["monitor"].as_str().unwrap();
    assert!(Path::new(monitor).starts_with(&prefix), "{monitor}");

    // Its unit starts and stops it through the installed program.
    let unit = nelly(&["generate", "systemd", "--name", "box"]).expect(0).out();
    let stop = format!("ExecStop=\"{}\" stop box", prefix.join("bin/nelly").display());
    assert!(unit.lines().any(|line| line == stop), "{unit}");

    // What lives is not started; then, as after a reboot, the keeper is gone without a word.
    assert_eq!(nelly(&["start", "--restartable"]).expect(0).out(), "");
    kill("KILL", kept.pid("holder"));
    let ended = || !nelly(&["ps", "-aq", "--filter", "status=exited"]).out().is_empty();
    kept.until("the sandbox has ended", ended);
    assert_eq!(nelly(&["start", "--restartable"]).expect(0).out(), "box\n");
    assert_eq!(nelly(&["exec", "box", "echo", "again"]).expect(0).out(), "again\n");
    nelly(&["rm", "-f", "box"]).expect(0);
}

//! The library: its examples, which say themselves when something is not as it should be.

use std::process::Command;

use nelly_tests::{Done, run, top};

use super::keeper::{Kept, SERVER};
use super::{Home, LIMIT};

/// Runs an example of nelly-sandbox with the installation that was built.
#[track_caller]
fn example(home: &Home, name: &str, words: &[&str]) -> Done {
    // Beside this program's directory: target/PROFILE/deps.
    let this = std::env::current_exe().expect("the path of this program");
    let path =
        this.parent().and_then(|deps| deps.parent()).expect("a target directory").join("examples").join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --locked -p nelly-sandbox --examples`",
        path.display()
    );
    let mut command = Command::new(path);
    command.arg(top().join("target/nelly")).args(words).env("NELLY_HOME", home.path());
    run(&mut command, b"", LIMIT)
}

#[test]
fn one_process_holds_three_machines() {
    let home = Home::new();
    let done = example(&home, "embed", &[]);
    let said = "hello from first with 2 vCPUs\nsecond was stopped\nthird could not start\n";
    assert_eq!(done.expect(0).out(), said, "{}", done.err());
}

#[test]
fn a_sandbox_is_made_entered_and_removed_through_its_keeper() {
    let home = Home::new();
    let done = example(&home, "keep", &[]);
    let said = done.expect(0).out();
    assert!(said.starts_with("box is running and held by process "), "{said}");
    assert!(said.ends_with("\nbox was stopped and removed\n"), "{said}");
    assert_eq!(home.nelly(&["ps", "-a", "-q"]).expect(0).out(), "");
}

#[test]
fn machines_have_networks_ports_and_rules_by_the_library() {
    let home = Home::new();
    home.nelly(&["network", "create", "dev"]).expect(0);
    let done = example(&home, "network", &["dev"]);
    let said = "a server was reached by its ports and by vsock\na machine was alone\ntwo machines met on dev\n\
                wrong networks were refused\n";
    assert_eq!(done.expect(0).out(), said, "{}", done.err());
    assert_eq!(home.nelly(&["ps", "-a", "-q"]).expect(0).out(), "");
    home.nelly(&["network", "rm", "dev"]).expect(0);
}

/// The steps of docs/keeper-protocol.md, in another language.
#[test]
fn a_client_that_follows_the_documented_protocol_runs_commands() {
    let kept = Kept::new();
    kept.keep(&[], SERVER);
    let state = kept.sandboxes().join("names/box/state.json");
    let client = |words: &[&str], input: &[u8]| {
        let mut command = Command::new("python3");
        command.arg(top().join("vmm/sandbox/examples/keeper_client.py")).arg(&state).args(words);
        run(&mut command, input, LIMIT)
    };
    // A line, and much more than any window, both ways.
    let script = "read line; echo $line; wc -c; head -c 3000000 /dev/zero; echo told >&2; exit 7";
    let done = client(&["sh", "-c", script], &[b"fed\n".to_vec(), vec![0; 2 << 20]].concat());
    assert_eq!(done.expect(7).err(), "told\n");
    let whole = [b"fed\n2097152\n".to_vec(), vec![0; 3_000_000]].concat();
    assert!(done.stdout == whole, "{}", done.stdout.len());
    let missing = client(&["nosuch"], b"");
    assert!(missing.expect(127).err().contains("nosuch"), "{}", missing.err());
}

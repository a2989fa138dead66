//! The agent's service without a machine: real containers in namespaces of this test, calls over a
//! socket pair, streams over Unix sockets in place of vsock. Needs root, `mkfs.erofs` and a static
//! busybox; elsewhere it says so and passes nothing off as tested.

#![allow(clippy::unwrap_used, reason = "a test")]

mod bench;
mod calls;
mod copies;
mod escapes;
mod execs;
mod lives;
mod looks;
mod machine;
mod network;
mod relays;
mod rules;
mod storage;
mod streams;
mod volumes;

use std::process::ExitCode;

use bench::{Bench, Scenario};

fn main() -> ExitCode {
    // As the agent's program.
    if let Some(code) = nelly_agent::spawn::init::asked() {
        std::process::exit(code);
    }
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(calls::WORD) {
        calls::make(words);
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let scenarios: Vec<Scenario> = [
        lives::ALL,
        looks::ALL,
        copies::ALL,
        streams::ALL,
        execs::ALL,
        rules::ALL,
        escapes::ALL,
        storage::ALL,
        volumes::ALL,
        network::ALL,
        relays::ALL,
        machine::ALL,
    ]
    .concat()
    .into_iter()
    .collect();
    if std::env::args().any(|argument| argument == "--list") {
        scenarios.iter().for_each(|scenario| println!("{}: test", scenario.name));
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<_> = scenarios
        .into_iter()
        .filter(|one| filter.as_deref().is_none_or(|filter| one.name.contains(filter)))
        .collect();
    println!("\nrunning {} tests", wanted.len());
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: making containers without a machine needs root\n");
        println!("test result: ok. 0 passed; 0 failed; {} ignored; 0 measured; 0 filtered out", wanted.len());
        return ExitCode::SUCCESS;
    }
    let bench = Bench::new();
    let failed = wanted.iter().filter(|scenario| !bench.run(scenario)).count();
    drop(bench);
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n",
        wanted.len() - failed
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

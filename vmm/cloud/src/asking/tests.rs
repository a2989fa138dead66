//! A process that lies, dies, floods, writes too much or does not end, and one that answers.

use std::os::unix::fs::PermissionsExt;

use nelly_disk::Format;

use super::*;
use crate::drivers::Drivers;
use crate::entry::{BootEntry, FileRef, Loader};
use crate::files::{INITRD_MAX, KERNEL_MAX};
use crate::plan::BootPlan;
use crate::said::Place;

/// A reader that is this script of a shell, and a chain of one image beside it.
fn reader(script: &str) -> (tempfile::TempDir, Reader, Vec<ChainFile>) {
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("reader");
    // By a name of its own, so that no other test's child has it open for writing.
    std::fs::write(program.with_extension("new"), format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(program.with_extension("new"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(program.with_extension("new"), &program).unwrap();
    std::fs::write(place.path().join("image"), [0; 4096]).unwrap();
    let file = File::open(place.path().join("image")).unwrap();
    let chain = vec![ChainFile { file, format: Format::Raw, name: "image".to_owned() }];
    let reader = Reader { program, words: vec![place.path().into()], patience: Duration::from_secs(60) };
    (place, reader, chain)
}

fn wanted(outputs: bool) -> Wanted {
    Wanted::Plan { console: None, entry: None, kernel: outputs, initrd: false, below: 1000 }
}

/// An answer in which nothing is wrong.
fn found() -> Found {
    let place =
        Place { number: Some(1), start: 0, bytes: 4096, kind: None, partuuid: None, file_system: None };
    let entry = BootEntry {
        title: "t".into(),
        id: "i".into(),
        kernel: FileRef { slot: 0, path: "/k".into(), bytes: 1 },
        initrds: Vec::new(),
        command_line: "ro".into(),
        devicetree: None,
        source: "s".into(),
    };
    let plan = BootPlan {
        loader: Loader::Grub,
        entries: vec![entry],
        chosen: 0,
        command_line: "ro".into(),
        drivers: Drivers::default(),
        looked_for: Vec::new(),
        notes: Vec::new(),
    };
    Found { table: None, places: vec![place], root: Some(0), boot: None, esp: None, plan }
}

fn says(said: &Said) -> String {
    format!("cat >/dev/null; cat <<'END'\n{}\nEND", serde_json::to_string(said).unwrap())
}

#[track_caller]
fn failure(script: &str) -> String {
    let (_place, reader, chain) = reader(script);
    let error = reader.plan(&chain, &wanted(false), &[]).unwrap_err();
    let words = crate::error::chain(&error);
    assert!(!words.is_empty() && words.len() < 3000 && !words.contains(char::is_control), "{words:?}");
    words
}

#[test]
fn an_answer_arrives_and_the_question_did() {
    let (place, reader, chain) = reader(&format!(
        "tail -c +2 >$1/question; cat >/dev/null; cat <<'END'\n{}\nEND",
        serde_json::to_string(&Said::Found(Box::new(found()))).unwrap()
    ));
    assert_eq!(*reader.plan(&chain, &wanted(false), &[]).unwrap(), found());
    let text = std::fs::read(place.path().join("question")).unwrap();
    let question: Question = serde_json::from_slice(&text).unwrap();
    assert_eq!(question, Question::of(&chain, &wanted(false)));
    let (_place, reader, chain) = super::tests::reader(&says(&Said::User(Some("ada".into()))));
    assert_eq!(reader.user(&chain).unwrap().as_deref(), Some("ada"));
    // What was not asked.
    assert!(reader.plan(&chain, &wanted(false), &[]).is_err());
}

#[test]
fn refusals_are_told_as_what_they_are() {
    let of = |said: Said| {
        let (_place, reader, chain) = reader(&says(&said));
        reader.plan(&chain, &wanted(false), &[]).unwrap_err()
    };
    assert!(matches!(of(Said::Nothing("n".into())), AskError::Nothing(words) if words == "n"));
    assert!(matches!(of(Said::NoEntry("n".into())), AskError::NoEntry(words) if words == "n"));
    assert!(matches!(of(Said::Refused("n".into())), AskError::Refused(words) if words == "n"));
    assert!(matches!(of(Said::TooLarge(7)), AskError::TooLarge(7)));
}

/// Makes an answer wrong.
type Change = fn(&mut Found);

#[test]
fn an_answer_that_cannot_be_is_an_error() {
    let change = |how: Change| {
        let mut found = found();
        how(&mut found);
        failure(&says(&Said::Found(Box::new(found))))
    };
    let wrongs: &[(Change, &str)] = &[
        (|found| found.root = Some(1), "no such partition"),
        (|found| found.esp = Some(usize::MAX), "no such partition"),
        (|found| found.plan.chosen = 1, "no such entry"),
        (|found| found.plan.entries.clear(), "no such entry"),
        (|found| found.plan.entries = vec![found.plan.entries[0].clone(); 300], "no such entry"),
        (|found| found.plan.entries[0].kernel.slot = 9, "no partition"),
        (|found| found.plan.entries[0].initrds = vec![found.plan.entries[0].kernel.clone(); 99], "initrds"),
        (|found| found.plan.command_line = "x".repeat(5000), "too long"),
        (|found| found.plan.notes = vec!["x".into(); 5000], "too much to tell"),
        (|found| found.places = vec![found.places[0].clone(); 300], "too many partitions"),
    ];
    for (how, what) in wrongs {
        let words = change(*how);
        assert!(words.contains("cannot be") && words.contains(what), "{words}");
    }
}

#[test]
fn a_process_that_dies_floods_or_says_nonsense_is_an_error_that_says_so() {
    assert!(failure("cat >/dev/null; exit 0").contains("gave no answer"));
    assert!(failure("exit 3").contains("exit status: 3"));
    // Said, and not meant.
    let found = Said::Found(Box::new(found()));
    assert!(
        failure(&format!("{}; exit 3", says(&found).replace("\nEND", "\nEND\ntrue")))
            .contains("exit status: 3")
    );
    let words = failure("cat >/dev/null; printf 'thread x panicked\\033[2J\\nat y' >&2; kill -9 $$");
    assert!(words.contains("signal: 9") && words.contains("panicked"), "{words}");
    assert!(failure("yes").contains("more than it may"));
    assert!(
        failure("cat >/dev/null; head -c 100000 /dev/zero | tr '\\0' x; exit 1").contains("exit status: 1")
    );
    for nonsense in ["{}", "{\"Found\":7}", "\"User\"", "{\"User\":{\"a\":1}}"] {
        assert!(failure(&format!("cat >/dev/null; echo '{nonsense}'")).contains("gave no answer"));
    }
    let (_place, mut reader, chain) = reader("true");
    reader.program = "/nowhere/reader".into();
    assert!(matches!(reader.user(&chain), Err(AskError::Start { .. })));
}

#[test]
fn one_that_does_not_end_is_ended() {
    let (place, mut reader, chain) = reader("echo $$ >$1/pid; exec sleep 600");
    reader.patience = Duration::from_millis(300);
    let words = crate::error::chain(&reader.plan(&chain, &wanted(false), &[]).unwrap_err());
    assert!(words.contains("was ended"), "{words}");
    let pid = std::fs::read_to_string(place.path().join("pid")).unwrap_or_default();
    // It was waited for, so that there is not even its remains.
    assert!(pid.is_empty() || !std::path::Path::new("/proc").join(pid.trim()).exists());
    // One that says nothing more and stays.
    let (_place, reader, chain) =
        super::tests::reader("cat >/dev/null; exec >/dev/null 2>&1; exec sleep 600");
    let words = crate::error::chain(&reader.plan(&chain, &wanted(false), &[]).unwrap_err());
    assert!(words.contains("signal: 9"), "{words}");
}

#[test]
fn what_is_written_is_measured_and_not_believed() {
    // It has no way to the file but that which it was handed, which a script cannot receive: so
    // the file is filled before.
    let (place, reader, chain) = reader(&says(&Said::Found(Box::new(found()))));
    let out = File::create(place.path().join("out")).unwrap();
    out.set_len(999).unwrap();
    assert!(reader.plan(&chain, &wanted(true), &[&out]).is_ok());
    out.set_len(1000).unwrap();
    let error = reader.plan(&chain, &wanted(true), &[&out]).unwrap_err();
    assert!(matches!(error, AskError::TooLarge(1000)), "{error}");
}

#[test]
fn no_file_is_larger_than_any_kernel_or_initrd_whatever_the_caller_can_bear() {
    let (place, reader, chain) = reader(&says(&Said::Found(Box::new(found()))));
    let out = |name: &str| File::create(place.path().join(name)).unwrap();
    let (kernel, initrd) = (out("kernel"), out("initrd"));
    let wanted =
        |kernel, initrd| Wanted::Plan { console: None, entry: None, kernel, initrd, below: u64::MAX };
    let plan = |of_kernel: u64, of_initrd: u64| {
        kernel.set_len(of_kernel).unwrap();
        initrd.set_len(of_initrd).unwrap();
        reader.plan(&chain, &wanted(true, true), &[&kernel, &initrd])
    };
    assert!(plan(KERNEL_MAX, INITRD_MAX).is_ok());
    let too_large = |plan: Result<_, AskError>, bytes: u64| {
        crate::error::chain(&plan.unwrap_err()).contains(&format!("wrote {bytes} bytes"))
    };
    assert!(too_large(plan(KERNEL_MAX + 1, 1), KERNEL_MAX + 1));
    assert!(too_large(plan(1, INITRD_MAX + 1), INITRD_MAX + 1));
    // One file alone is the one that was asked for.
    let one = reader.plan(&chain, &wanted(false, true), &[&initrd]);
    assert!(too_large(one, INITRD_MAX + 1));
    kernel.set_len(KERNEL_MAX + 1).unwrap();
    assert!(reader.plan(&chain, &wanted(false, true), &[&kernel]).is_ok());
    assert!(too_large(reader.plan(&chain, &wanted(true, false), &[&kernel]), KERNEL_MAX + 1));
}

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::state::record::tests::example;
use crate::state::{BootRecord, Condition, SandboxState, Status};

fn place() -> (tempfile::TempDir, PathBuf) {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("sandboxes");
    (top, path)
}

fn created(sandboxes: &Sandboxes, name: &str) -> SandboxDir {
    sandboxes.draft(example(name)).unwrap().publish().unwrap().0
}

fn entries(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn lone(path: &Path) -> Vec<String> {
    let mut names = entries(path);
    names.retain(|name| !["lock", "names", "version"].contains(&name.as_str()));
    names
}

#[test]
fn a_sandbox_is_there_whole_or_not_at_all() {
    let (_top, path) = place();
    assert!(Sandboxes::open(&path).unwrap().is_none() && !path.exists(), "reading makes nothing");
    let sandboxes = Sandboxes::make(&path).unwrap();
    let record = example("web");
    let draft = sandboxes.draft(record.clone()).unwrap();
    assert!(sandboxes.list().unwrap().is_empty() && sandboxes.find("web").is_err());
    assert_eq!(sandboxes.clean().unwrap(), [], "its maker lives");
    fs::write(draft.dir().path().join("disk.raw"), "x").unwrap();
    let (sandbox, lock) = draft.publish().unwrap();
    assert_eq!(entries(sandbox.dir().path()), ["disk.raw", "lock", "logs", "sandbox.json", "state.json"]);
    assert_eq!(
        (sandbox.record().unwrap(), sandbox.state().unwrap()),
        (record.clone(), SandboxState::created())
    );
    let listed = &sandboxes.list().unwrap()[0];
    assert_eq!((listed.id, listed.name.clone(), listed.locked), (record.id, Some(record.name), true));
    drop(lock);
    // One that is not published leaves nothing.
    drop(sandboxes.draft(example("other")).unwrap());
    assert_eq!(lone(&path), [record.id.to_string()]);
    assert_eq!(entries(&path.join("names")), ["web"]);
    assert!(sandboxes.draft(example("other")).is_ok());
}

#[test]
fn the_lock_says_who_lives_and_asking_disturbs_nobody() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let sandbox = created(&sandboxes, "web");
    let running = SandboxState { status: Status::Running, ..SandboxState::created() };
    let lock = sandboxes.lock(&sandbox).unwrap();
    sandbox.write_state(&lock, &running).unwrap();
    let again = sandboxes.find("web").unwrap();
    assert_eq!(again.condition().unwrap(), Condition::Status(Status::Running));
    assert!(matches!(sandboxes.lock(&again), Err(StateError::Busy { .. })));
    // Many ask while one takes it, and the taker never finds it held.
    drop(lock);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ask = || {
            while !done.load(Ordering::Relaxed) {
                sandboxes.find("web").unwrap().condition().unwrap();
            }
        };
        let _askers = [scope.spawn(ask), scope.spawn(ask)];
        let taken = (0..300).all(|_| sandboxes.lock(&sandbox).is_ok());
        done.store(true, Ordering::Relaxed);
        assert!(taken);
    });
    assert_eq!(again.condition().unwrap(), Condition::Unclean);
}

#[test]
fn a_lock_is_passed_on_with_its_descriptor() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let (web, other) = (created(&sandboxes, "web"), created(&sandboxes, "other"));
    let fd = sandboxes.lock(&web).unwrap().into_fd();
    assert!(matches!(other.adopt(fd.try_clone().unwrap()), Err(StateError::Busy { .. })), "not its lock");
    let adopted = web.adopt(fd).unwrap();
    assert!(adopted.as_fd().as_raw_fd() > 2 && web.is_locked().unwrap());
    let not_held = fs::OpenOptions::new().write(true).open(web.dir().path().join("lock")).unwrap();
    assert!(matches!(web.adopt(not_held.into()), Err(StateError::Busy { .. })));
    drop(adopted);
    assert!(!web.is_locked().unwrap());
}

#[test]
fn a_sandbox_is_found_by_id_name_and_prefix() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let web = created(&sandboxes, "web");
    let id = web.id().to_string();
    for word in ["web", &id, &id[..12], &id[..63]] {
        assert_eq!(sandboxes.find(word).unwrap().id(), web.id(), "{word}");
    }
    for word in [
        "",
        "we",
        "web2",
        "..",
        "../names",
        "a/b",
        "\0",
        &id.to_uppercase(),
        &"0".repeat(64),
        &"n".repeat(255),
    ] {
        assert!(matches!(sandboxes.find(word), Err(StateError::Missing { .. })), "{word:?}");
    }
    let mut ids = vec![web.id().to_string()];
    let first = id[..1].to_owned();
    while ids.len() < 2 {
        let record = example(&format!("n{}", Id::random().unwrap().short()));
        if record.id.to_string().starts_with(&first) {
            ids.push(record.id.short());
            sandboxes.draft(record).unwrap().publish().unwrap();
        }
    }
    let error = sandboxes.find(&first).unwrap_err().to_string();
    assert!(error.contains(&ids[1]) && error.contains(&id[..12]) && error.contains("(web)"), "{error}");
    // A name goes before the beginning of an id.
    let named = created(&sandboxes, &first);
    assert_eq!(sandboxes.find(&first).unwrap().id(), named.id());
}

#[test]
fn names_are_taken_once_kept_by_records_and_freed() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let web = created(&sandboxes, "web");
    let early = sandboxes.draft(example("late")).unwrap();
    let late = created(&sandboxes, "late");
    for (error, id) in
        [(early.publish().unwrap_err(), late.id()), (sandboxes.draft(example("web")).unwrap_err(), web.id())]
    {
        assert!(error.to_string().contains(&id.short()), "{error}");
    }
    // One that nobody asked for is made longer.
    let mut record = example("web");
    record.name = record.id.name();
    created(&sandboxes, record.name.as_str());
    let longer = sandboxes.draft(record.clone()).unwrap().publish().unwrap().0;
    assert_eq!(longer.record().unwrap().name, record.id.longer_name());
    assert!(matches!(sandboxes.rename(&web, &"late".parse().unwrap()), Err(StateError::NameTaken { .. })));
    sandboxes.rename(&web, &"front".parse().unwrap()).unwrap();
    assert_eq!(sandboxes.find("front").unwrap().id(), web.id());
    assert!(sandboxes.find("web").is_err());
    created(&sandboxes, "web");
    // A rename that was killed before it changed the record, and one that was killed after.
    symlink(format!("../{}", web.id()), path.join("names/never")).unwrap();
    symlink(format!("../{}", Id::random().unwrap()), path.join("names/nobody")).unwrap();
    assert!(sandboxes.find("never").is_err() && sandboxes.find("nobody").is_err());
    created(&sandboxes, "never");
    assert_eq!(sandboxes.clean().unwrap(), [Cleaned::Name("nobody".parse().unwrap())]);
    // A lost link is no lost sandbox.
    fs::remove_file(path.join("names/late")).unwrap();
    assert_eq!(sandboxes.find("late").unwrap().id(), late.id());
    let updated = sandboxes.update(&late, |record| record.auto_remove = true).unwrap();
    assert_eq!(late.record().unwrap(), updated);
}

#[test]
fn removal_needs_the_lock_and_is_mended_when_interrupted() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let (web, other) = (created(&sandboxes, "web"), created(&sandboxes, "other"));
    let lock = sandboxes.lock(&web).unwrap();
    let late = sandboxes.find("web").unwrap();
    sandboxes.remove(&web, lock).unwrap();
    assert!(matches!(sandboxes.lock(&late), Err(StateError::Missing { .. })));
    assert!(
        sandboxes.rename(&late, &"x".parse().unwrap()).is_err() && sandboxes.update(&late, |_| ()).is_err()
    );
    assert_eq!(lone(&path), [other.id().to_string()]);
    created(&sandboxes, "web");
    // Killed after the renaming, with half of the files there.
    let other_id = other.id();
    fs::rename(other.dir().path(), path.join(format!("gone-{other_id}"))).unwrap();
    fs::remove_file(path.join(format!("gone-{other_id}/sandbox.json"))).unwrap();
    assert!(sandboxes.find("other").is_err() && sandboxes.find(&other_id.to_string()).is_err());
    assert_eq!(sandboxes.list().unwrap().len(), 1);
    assert_eq!(lone(&path).len(), 1, "every command cleans");
    assert_eq!(sandboxes.clean().unwrap(), []);
    assert!(!path.join("names/other").exists());
}

#[test]
fn one_to_be_removed_at_its_end_goes_when_its_holder_was_killed() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let record = SandboxRecord { auto_remove: true, ..example("once") };
    let (sandbox, lock) = sandboxes.draft(record).unwrap().publish().unwrap();
    assert_eq!(sandboxes.clean().unwrap(), []);
    sandbox.write_state(&lock, &SandboxState { status: Status::Running, ..SandboxState::created() }).unwrap();
    assert_eq!((sandboxes.clean().unwrap(), sandboxes.list().unwrap().len()), (vec![], 1), "it lives");
    drop(lock);
    assert!(
        sandboxes.list().unwrap().is_empty()
            && lone(&path).is_empty()
            && entries(&path.join("names")).is_empty()
    );
    // One that was never started stays.
    let record = SandboxRecord { auto_remove: true, ..example("never") };
    drop(sandboxes.draft(record).unwrap().publish().unwrap());
    assert_eq!((sandboxes.clean().unwrap(), sandboxes.list().unwrap().len()), (vec![], 1));
}

/// A name, what is done to its directory, and what is said of it.
#[test]
fn the_record_of_a_booted_machine_is_none_of_an_older_version() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let boot = BootRecord { image: Some("/a.qcow2,size=2G".into()), ..BootRecord::default() };
    let record = SandboxRecord { boot: Some(boot), ..example("web") };
    let (sandbox, lock) = sandboxes.draft(record.clone()).unwrap().publish().unwrap();
    assert_eq!(sandbox.record().unwrap(), record);
    let file = path.join(record.id.to_string()).join("sandbox.json");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"schema\": 2"), "{text}");
    // Neither is taken for the other.
    fs::write(&file, text.replace("\"schema\": 2", "\"schema\": 1")).unwrap();
    let error = nelly_vmm::text::chain(&sandbox.record().unwrap_err());
    assert!(error.contains("its schema is 1, and not 2"), "{error}");
    assert!(sandbox.seed().is_err());
    sandbox.write_seed(&lock, b"a seed").unwrap();
    let mut seed = String::new();
    sandbox.seed().unwrap().read_to_string(&mut seed).unwrap();
    assert_eq!(seed, "a seed");
    sandbox.remove_seed(&lock).unwrap();
    assert!(sandbox.seed().is_err());
    sandbox.remove_seed(&lock).unwrap();
    // A new one has its seed before anybody sees it.
    let draft = sandboxes.draft(SandboxRecord { boot: record.boot, ..example("new") }).unwrap();
    draft.write_seed(b"its own").unwrap();
    assert!(draft.sandbox().boot_disk().starts_with(draft.dir().path()));
    let (sandbox, _lock) = draft.publish().unwrap();
    let mut seed = String::new();
    sandbox.seed().unwrap().read_to_string(&mut seed).unwrap();
    assert_eq!(seed, "its own");
}

type Row = (&'static str, fn(&Path), &'static str);

#[test]
fn damage_is_named_where_it_is_and_hides_nobody() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let damage: [Row; 8] = [
        ("empty", |dir| fs::write(dir.join("state.json"), "").unwrap(), "cannot use"),
        ("torn", |dir| fs::write(dir.join("sandbox.json"), r#"{"schema":1,"id":"0"#).unwrap(), "cannot use"),
        ("newer", |dir| fs::write(dir.join("state.json"), r#"{"schema":2}"#).unwrap(), "schema 2"),
        (
            "status",
            |dir| fs::write(dir.join("state.json"), r#"{"schema":1,"status":"melting"}"#).unwrap(),
            "melting",
        ),
        ("missing", |dir| fs::remove_file(dir.join("sandbox.json")).unwrap(), "is missing"),
        (
            "fifo",
            |dir| {
                fs::remove_file(dir.join("state.json")).unwrap();
                rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("state.json"), 0o600.into()).unwrap();
            },
            "not a regular file",
        ),
        (
            "linked",
            |dir| {
                fs::rename(dir.join("state.json"), dir.join("other")).unwrap();
                symlink("other", dir.join("state.json")).unwrap();
            },
            "not a regular file",
        ),
        (
            "open",
            |dir| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
            },
            "writable by users other",
        ),
    ];
    for (name, harm, _) in damage {
        harm(created(&sandboxes, name).dir().path());
    }
    created(&sandboxes, "sound");
    let listed = sandboxes.list().unwrap();
    assert_eq!(listed.len(), 9);
    for (name, _, needle) in damage {
        let one =
            listed.iter().find(|one| one.name.as_ref().is_some_and(|found| found.as_str() == name)).unwrap();
        let error = one.details.as_ref().unwrap_err();
        let said = nelly_vmm::text::chain(error);
        assert!(said.contains(needle) && said.contains(&one.id.to_string()), "{said}");
        assert!(
            matches!(sandboxes.draft(example(name)), Err(StateError::NameTaken { .. })),
            "{name} is still taken"
        );
        // It can be removed by its name, unless only a newer version knows what that would mean.
        let newer = ["newer", "status"].contains(&name);
        assert_eq!(error.is_of_newer_version(), newer, "{name}");
        if name != "open" {
            let sandbox = sandboxes.find(name).unwrap();
            let before = entries(sandbox.dir().path());
            let removed = sandboxes.remove(&sandbox, sandboxes.lock(&sandbox).unwrap());
            assert_eq!(removed.is_err(), newer, "{name}");
            let refused = [
                sandboxes.rename(&sandbox, &"another".parse().unwrap()),
                sandboxes.update(&sandbox, |record| record.auto_remove = true).map(drop),
            ];
            if newer {
                assert!(refused.iter().all(Result::is_err), "{name}");
                assert_eq!(entries(sandbox.dir().path()), before, "{name}");
            }
        }
    }
    assert_eq!(sandboxes.clean().unwrap(), []);
    assert_eq!(sandboxes.list().unwrap().len(), 4);
    assert!(sandboxes.list().unwrap().iter().any(|one| one.details.is_ok()));
}

#[test]
fn a_directory_of_a_newer_version_is_refused_and_left_alone() {
    let (_top, path) = place();
    Sandboxes::make(&path).unwrap();
    fs::write(path.join("version"), "nelly-sandboxes 2\n").unwrap();
    for error in [Sandboxes::open(&path).unwrap_err(), Sandboxes::make(&path).unwrap_err()] {
        assert!(
            error.to_string().contains("nelly-sandboxes 2") && error.to_string().contains("newer"),
            "{error}"
        );
    }
}

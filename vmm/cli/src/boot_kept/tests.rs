use std::fs;
use std::process::Command;

use nelly_sandbox::spec::installation::Search;
use nelly_sandbox::state::Places;

use super::*;
use crate::settings::Settings;

/// Hears its order, and says to whoever starts it that the machine runs.
const KEEPER: &str = "#!/bin/sh\nread -r order\necho '{\"code\":0,\"message\":\"\"}' >&0\n";

/// A state directory and an installation.
struct Place {
    top: tempfile::TempDir,
    context: Context,
    sandboxes: Sandboxes,
}

impl Place {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let bin = top.path().join("bin");
        let home = top.path().join("home");
        fs::create_dir(&bin).unwrap();
        fs::write(top.path().join("kernel"), "a kernel").unwrap();
        let places = Places::from_env(|name| (name == "NELLY_HOME").then(|| home.clone())).unwrap();
        let context = Context {
            settings: Settings::load(None, |_| None).unwrap(),
            program: bin.join("nelly"),
            search: Search { bin, data: None },
            places,
            booted: MACHINES,
        };
        let sandboxes = Sandboxes::make(&context.places.sandboxes()).unwrap();
        let place = Self { top, context, sandboxes };
        place.install("nelly-monitor", "#!/bin/sh\n");
        place
    }

    /// Another process writes it: one that forks here cannot have it open for writing meanwhile.
    fn install(&self, name: &str, text: &str) {
        let path = self.context.search.bin.join(name);
        let script = "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"";
        let written = Command::new("sh").args(["-c", script, "sh", text]).arg(path).status();
        assert!(written.unwrap().success());
    }

    /// The record of a machine that boots `kernel`.
    fn record(&self, kernel: &str, id: Id, name: Name, seed: bool) -> SandboxRecord {
        let kernel = Some(self.top.path().join(kernel));
        let boot = BootRecord { kernel, ..BootRecord::default() };
        let args = args_of(&boot, Platform::Auto);
        record(&args, Network::None, (id, name), seed, &self.context).unwrap()
    }

    /// A machine that does not run, with this seed.
    fn made(&self, name: Name, seed: Option<&str>) -> SandboxDir {
        let record = self.record("kernel", Id::random().unwrap(), name, seed.is_some());
        let draft = self.sandboxes.draft(record).unwrap();
        if let Some(seed) = seed {
            draft.write_seed(seed.as_bytes()).unwrap();
        }
        let (sandbox, _lock) = draft.publish().unwrap();
        let noted = |record: &mut SandboxRecord| {
            record.restart = RestartPolicy::Always;
            record.labels.insert("stage".into(), "test".into());
            record.annotations.insert("by".into(), "hand".into());
        };
        self.sandboxes.update(&sandbox, noted).unwrap();
        sandbox
    }

    fn again(&self, sandbox: &SandboxDir, kernel: &str, seed: Option<&str>) -> Result<Name> {
        let name = sandbox.record().unwrap().name;
        let new = self.record(kernel, sandbox.id(), name, seed.is_some());
        start_again(&self.context, &self.sandboxes, sandbox, new, seed.map(str::as_bytes))
    }

    /// What lies in the state directory but for its own files.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.sandboxes.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !["lock", "names", "version"].contains(&name.as_str())).collect()
    }
}

fn seed_of(sandbox: &SandboxDir) -> Option<String> {
    sandbox.seed().ok().map(|seed| std::io::read_to_string(seed).unwrap())
}

#[test]
fn a_machine_that_does_not_start_with_other_flags_is_what_it_was() {
    let place = Place::new();
    for (name, seed) in [("web", Some("old")), ("db", None)] {
        let sandbox = place.made(name.parse().unwrap(), seed);
        let before = sandbox.record().unwrap();
        // No keeper is installed; it ends without a word; or there is nothing to boot.
        for (keeper, kernel, why) in [
            (None, "kernel", "nelly-keeper"),
            (Some("#!/bin/sh\nexit 1\n"), "kernel", "before it said anything"),
            (Some(KEEPER), "missing", "missing"),
        ] {
            let _absent = fs::remove_file(place.context.search.bin.join("nelly-keeper"));
            if let Some(keeper) = keeper {
                place.install("nelly-keeper", keeper);
            }
            for new in [Some("new"), None] {
                let error = format!("{:#}", place.again(&sandbox, kernel, new).unwrap_err());
                assert!(error.contains(why), "{error}");
                assert_eq!(sandbox.record().unwrap(), before, "{error}");
                assert_eq!(seed_of(&sandbox).as_deref(), seed, "{error}");
            }
        }
    }
}

#[test]
fn other_flags_keep_what_other_commands_said() {
    let place = Place::new();
    place.install("nelly-keeper", KEEPER);
    fs::write(place.top.path().join("newer"), "a kernel").unwrap();
    let sandbox = place.made("web".parse().unwrap(), Some("old"));
    let before = sandbox.record().unwrap();
    assert_eq!(place.again(&sandbox, "newer", Some("new")).unwrap().as_str(), "web");
    let after = sandbox.record().unwrap();
    let kernel = after.boot.as_ref().and_then(|boot| boot.kernel.clone());
    assert_eq!(kernel.unwrap(), place.top.path().join("newer"));
    let said = |record: &SandboxRecord| {
        (record.created, record.restart, record.labels.clone(), record.annotations.clone())
    };
    assert_eq!(said(&after), said(&before));
    assert_eq!(seed_of(&sandbox).as_deref(), Some("new"));
    place.again(&sandbox, "newer", None).unwrap();
    assert!(seed_of(&sandbox).is_none() && !sandbox.record().unwrap().boot.unwrap().seed);
}

#[test]
fn a_new_machine_is_there_when_it_started_or_not_at_all() {
    let place = Place::new();
    let first = |kernel: &str, id: Id| {
        let record = place.record(kernel, id, id.name(), true);
        start_first(&place.context, &place.sandboxes, record, Some(b"seed"), None)
    };
    for kernel in ["kernel", "missing"] {
        first(kernel, Id::random().unwrap()).unwrap_err();
        assert_eq!(place.left(), [""; 0], "{kernel}");
    }
    place.install("nelly-keeper", KEEPER);
    let id = Id::random().unwrap();
    // Another machine has the two words already: it stays as it is.
    let other = place.made(id.name(), Some("of the other"));
    let before = other.record().unwrap();
    let name = first("kernel", id).unwrap();
    assert_eq!(name, id.longer_name());
    let sandbox = place.sandboxes.find(name.as_str()).unwrap();
    assert_eq!((sandbox.id(), seed_of(&sandbox).as_deref()), (id, Some("seed")));
    assert_eq!(sandbox.record().unwrap().name, name);
    assert_eq!(other.record().unwrap(), before);
    assert_eq!(seed_of(&other).as_deref(), Some("of the other"));
}

#[test]
fn a_machine_that_cannot_start_again_is_not_stopped_for_it() {
    let place = Place::new();
    let sandbox = place.made("web".parse().unwrap(), Some("seed"));
    let record = sandbox.record().unwrap();
    let check = |record: &SandboxRecord| {
        check_running(&place.context, &sandbox, record).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(check(&record), Ok(()));
    let with = |change: &dyn Fn(&mut BootRecord)| {
        let mut record = record.clone();
        change(record.boot.as_mut().unwrap());
        check(&record).unwrap_err()
    };
    let error = with(&|boot| boot.kernel = Some("/nonexistent/kernel".into()));
    assert!(error.contains("/nonexistent/kernel"), "{error}");
    let error = with(&|boot| boot.disks = vec!["/nonexistent/disk,ro".into()]);
    assert!(error.contains("/nonexistent/disk"), "{error}");
    let error = with(&|boot| boot.shares = vec!["tag=/nonexistent/share".into()]);
    assert!(error.contains("/nonexistent/share"), "{error}");
    fs::remove_file(place.context.search.bin.join("nelly-monitor")).unwrap();
    assert!(check(&record).unwrap_err().contains("monitor"));
    place.install("nelly-monitor", "#!/bin/sh\n");
    fs::remove_file(sandbox.dir().path().join("seed.img")).unwrap();
    let error = check_running(&place.context, &sandbox, &record).unwrap_err();
    let hint = format!("{:?}", error.downcast_ref::<Hint>().unwrap());
    assert!(hint.contains("seed.img") && hint.contains("nelly boot -d --name web"), "{hint}");
}

#[test]
fn only_a_guest_that_ran_is_worth_a_look() {
    use nelly_vmm::machine::EndReason;
    for reason in [EndReason::Panic, EndReason::TripleFault, EndReason::PowerOff, EndReason::TimeLimit] {
        assert!(is_of_guest(reason.word()), "{reason}");
    }
    for reason in ["failed", EndReason::Killed.word()] {
        assert!(!is_of_guest(reason), "{reason}");
    }
}

/// Two machines with the same flags, and so the same texts in their seeds, are two to cloud-init;
/// one that is started again is itself.
#[test]
fn each_machine_is_an_instance_of_its_own() {
    let place = Place::new();
    let given = |name: &str, text: &str| {
        let path = place.top.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    };
    let mut args = args_of(&BootRecord::default(), Platform::Auto);
    args.seed.user_data = given("user", "#cloud-config\n{}\n");
    let seed = |args: &BootArgs, id| {
        let made = MadeSeed::of(args, &Network::None, id, None, &place.context).unwrap();
        String::from_utf8_lossy(&made.unwrap().disk).into_owned()
    };
    let instance = |disk: &str| {
        let (_, rest) = disk.split_once("\"instance-id\"").unwrap();
        rest.split('"').nth(1).unwrap().to_owned()
    };
    let [one, other] = [(); 2].map(|()| Id::random().unwrap());
    let first = instance(&seed(&args, one));
    assert_eq!(instance(&seed(&args, one)), first);
    assert_ne!(instance(&seed(&args, other)), first);
    args.seed.hostname = Some("renamed".into());
    assert_ne!(instance(&seed(&args, one)), first);
    // What a user says of it is the user's word.
    args.seed.hostname = None;
    args.seed.meta_data = given("meta", "instance-id: mine\n");
    assert!([one, other].iter().all(|id| seed(&args, *id).contains("instance-id: mine\n")));
}

//! Faults beside a sandbox: sockets without a place, a host that was booted again, a machine that
//! hangs among others, a full disk. Each is told in a sentence, and the rest goes on.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nelly_tests::{Done, nelly, run, scaled, wait};
use serde_json::Value;

use super::LIMIT;
use super::image_store::archive;
use super::keeper::{Kept, SERVER, kill, runs, spawn};

/// Processes of ours, and the names of their programs: the environment names the home of this test,
/// or, where a monitor has cleared that, a file that is open lies there.
pub(super) fn processes(kept: &Kept) -> Vec<(u64, String)> {
    let home = kept.0.path().to_str().unwrap().as_bytes().to_vec();
    let numbers =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let names_home = |bytes: &[u8]| bytes.windows(home.len()).any(|part| part == home);
    let ours = |pid: u64| {
        let named =
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| names_home(&environment));
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
        (named || links.any(|link| names_home(link.as_os_str().as_bytes()))).then_some(())?;
        // What has ended has no program any more.
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        Some((pid, program.file_name()?.to_str()?.to_owned()))
    };
    numbers.filter_map(ours).collect()
}

#[test]
fn sockets_that_cannot_be_made_are_told_and_a_keeper_that_lost_them_is_stopped() {
    let kept = Kept::new();
    let run = kept.0.path().join("run");
    fs::write(&run, "").unwrap();
    let words = |flag| ["run", "-d", flag, "--name=box", "--", "sh", "-c", SERVER];
    // Nothing is started that nobody could reach, and nothing stays of what was to be removed.
    for flag in ["--rm", "--restart=always"] {
        let refused = kept.0.nelly(&words(flag));
        let told = refused.expect(125).err();
        assert!(told.contains("sockets") && told.contains(run.to_str().unwrap()), "{told}");
        kept.until("the keeper ended", || processes(&kept).is_empty());
        assert_eq!(kept.out(&["ps", "-aq"]).is_empty(), flag == "--rm");
    }
    assert_eq!(kept.state()["status"], "created");
    fs::remove_file(&run).unwrap();
    kept.out(&["start", "box"]);
    // They are lost, and their place too: the keeper is asked to stop in the way that is left.
    fs::remove_dir_all(&run).unwrap();
    fs::write(&run, "").unwrap();
    let stopped = kept.0.nelly(&["stop", "box"]);
    assert!(stopped.expect(0).err().contains("SIGTERM"), "{}", stopped.err());
    assert_eq!(kept.state()["exit"]["code"], 3, "its own end, in order");
    kept.until("the keeper ended", || processes(&kept).is_empty());
    kept.out(&["rm", "box"]);
}

/// A user with directories of their own and without NELLY_HOME, which would say where the sockets
/// are.
struct User(Kept);

impl User {
    fn new() -> Self {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let kept = Kept::new();
        let home = kept.0.path();
        for name in ["home", "share", "session", "other"] {
            fs::create_dir(home.join(name)).unwrap();
            fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        fs::create_dir_all(home.join("share/nelly")).unwrap();
        // Where a test looks for the sandboxes.
        symlink(home.join("share/nelly"), home.join("data")).unwrap();
        Self(kept)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.0.path().join(name)
    }

    /// `nelly WORDS` in an environment with this XDG_RUNTIME_DIR, or none.
    #[track_caller]
    fn nelly(&self, session: Option<&str>, words: &[&str]) -> Done {
        let mut command = nelly(self.0.0.path(), words);
        command.env_remove("NELLY_HOME").env("HOME", self.path("home"));
        command.env("XDG_DATA_HOME", self.path("share")).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("XDG_CONFIG_HOME", self.path("config")).env_remove("XDG_RUNTIME_DIR");
        command.envs(session.map(|name| ("XDG_RUNTIME_DIR", self.path(name))));
        run(&mut command, b"", LIMIT)
    }

    /// The same, which must succeed.
    #[track_caller]
    fn out(&self, session: Option<&str>, words: &[&str]) -> String {
        self.nelly(session, words).expect(0).out().trim_end().to_owned()
    }

    /// Where the sandbox's sockets are, as its state says.
    fn sockets(&self) -> std::path::PathBuf {
        self.0.state()["runtime_dir"].as_str().unwrap().into()
    }
}

/// The user logs out, so that the runtime directory is removed; cron knows none, `su` and `sudo`
/// another one. A sandbox is the same from all of them.
#[test]
fn a_sandbox_is_found_whatever_the_runtime_directory_of_who_asks() {
    let user = User::new();
    let start = ["run", "-d", "--name", "box", "--", "sh", "-c", SERVER];
    user.nelly(Some("session"), &start).expect(0);
    let first = user.sockets();
    assert!(first.starts_with(user.path("session")), "{}", first.display());
    let works = |session: Option<&str>| {
        assert_eq!(user.out(session, &["ps", "-q"]).len(), 12, "{session:?}");
        assert_eq!(user.out(session, &["exec", "box", "echo", "there"]), "there", "{session:?}");
        assert_eq!(user.out(session, &["gc"]), "", "{session:?}");
        assert_eq!(user.out(session, &["exec", "box", "echo", "still"]), "still", "{session:?}");
    };
    let places = [Some("session"), Some("other"), Some("nowhere"), None];
    places.into_iter().for_each(works);
    assert_eq!(user.sockets(), first);
    // The logout: the keeper makes its sockets anew, where it still can.
    fs::remove_dir_all(user.path("session")).unwrap();
    places.into_iter().for_each(works);
    let second = user.sockets();
    assert!(second != first && second.exists(), "{}", second.display());
    // The next login.
    fs::create_dir(user.path("session")).unwrap();
    places.into_iter().for_each(works);
    let stopped = user.nelly(None, &["stop", "box"]);
    assert_eq!((stopped.expect(0).out().as_str(), stopped.err().as_str()), ("box\n", ""));
    assert_eq!(user.0.state()["exit"]["code"], 3, "its own end, in order");
    assert!(!second.exists(), "{} is left", second.display());
    assert_eq!(user.out(None, &["gc"]), "");
    // Started without a session, and killed: whoever comes next cleans its sockets.
    user.nelly(None, &["start", "box"]).expect(0);
    let last = user.sockets();
    assert!(!last.starts_with(user.0.0.path()) && last.exists(), "{}", last.display());
    kill("KILL", user.0.pid("holder"));
    user.0.until("the keeper ended", || user.out(Some("other"), &["ps", "-q"]).is_empty());
    assert!(user.out(Some("other"), &["ps", "-a"]).contains("Exited (unclean)"));
    user.out(Some("other"), &["gc"]);
    assert!(!last.exists(), "{} is left", last.display());
    user.out(Some("other"), &["rm", "box"]);
    assert_eq!(user.out(None, &["ps", "-aq"]), "");
}

#[test]
fn the_disk_of_an_image_is_made_again_by_its_digest_or_the_command_that_pulls_it_is_told() {
    let kept = Kept::new();
    kept.0.feed(&["image", "load"], &archive(&kept.0)).expect(0);
    kept.out(&["create", "--name", "box", "app:1", "sh", "-c", SERVER]);
    assert!(!kept.out(&["image", "prune", "--all"]).contains("removed"));
    assert!(kept.0.nelly(&["image", "rm", "app:1"]).expect(1).err().contains("used by a sandbox"));
    // The name means another image now, and the cache is cleared.
    let index = kept.0.path().join("data/images/index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("app:1", "app:2")).unwrap();
    fs::remove_dir_all(kept.0.path().join("cache")).unwrap();
    kept.out(&["start", "box"]);
    assert_eq!(kept.exec("echo same"), "same");
    kept.out(&["stop", "box"]);
    fs::remove_dir_all(kept.0.path().join("cache")).unwrap();
    fs::remove_dir_all(kept.0.path().join("data/images")).unwrap();
    let gone = kept.0.nelly(&["start", "box"]);
    let digest = kept.record()["image"]["digest"].as_str().unwrap().to_owned();
    assert!(gone.expect(1).err().contains(&format!("nelly image pull app@{digest}")), "{}", gone.err());
    assert_eq!(kept.state()["status"], "exited");
    kept.out(&["rm", "box"]);
}

/// Ends all processes of this test as the end of the host does, and what lies in memory only.
fn end_of_the_host(kept: &Kept) {
    loop {
        let left = processes(kept);
        if left.is_empty() {
            break;
        }
        // None of them sees the others end.
        left.iter().for_each(|(pid, _)| kill("STOP", *pid));
        left.iter().for_each(|(pid, _)| kill("KILL", *pid));
        thread::sleep(Duration::from_millis(10));
    }
    let _ = fs::remove_dir_all(kept.0.path().join("run"));
}

#[test]
fn after_the_end_of_the_host_every_sandbox_is_understood_and_starts() {
    let kept = Kept::new();
    let script = "trap '' TERM; while [ ! -e /root/end ]; do sleep 1; done; exit 4";
    kept.out(&["create", "--name", "box", "--", "sh", "-c", script]);
    end_of_the_host(&kept);
    assert!(kept.out(&["ps", "-a"]).contains("   Created"));
    let unclean = |state: &str| {
        assert_eq!(kept.state()["status"], state, "{}", kept.state());
        end_of_the_host(&kept);
        assert!(kept.out(&["ps", "-a"]).contains("   Exited (unclean)"), "{state}");
        assert_eq!(kept.out(&["ps", "-q"]), "", "{state}");
        let shown: Value = serde_json::from_str(&kept.out(&["ps", "-a", "--json"])).unwrap();
        assert_eq!((&shown[0]["status"], &shown[0]["unclean"]), (&"exited".into(), &true.into()), "{state}");
        assert!(kept.0.nelly(&["exec", "box", "true"]).expect(125).err().contains("unclean"), "{state}");
        // Between two starts the exit of the last one is known.
        let known = !kept.state()["exit"].is_null();
        kept.0.nelly(&["wait", "box"]).expect(i32::from(!known));
        // Nothing has to be ended, and nothing is locked: it starts.
        kept.out(&["stop", "box"]);
    };
    let mut start = spawn(kept.0.path(), &["start", "box"]);
    kept.until("it starts", || kept.state()["status"] == "starting");
    unclean("starting");
    wait(&mut start, LIMIT);
    kept.out(&["start", "box"]);
    unclean("running");
    kept.out(&["start", "box"]);
    kept.exec("echo kept >/root/file; sync");
    kept.out(&["pause", "box"]);
    unclean("paused");
    kept.out(&["start", "box"]);
    assert_eq!(kept.exec("cat /root/file"), "kept");
    let mut stop = spawn(kept.0.path(), &["stop", "--time", "5m", "box"]);
    kept.until("it stops", || kept.state()["status"] == "stopping");
    unclean("stopping");
    wait(&mut stop, LIMIT);
    kept.out(&["update", "--restart", "always", "box"]);
    kept.out(&["start", "box"]);
    kept.exec("echo >/root/end");
    kept.until("it waits for its next start", || {
        let state = kept.state();
        state["status"] == "starting" && state["exit"]["code"] == 4 && state["monitor"].is_null()
    });
    unclean("starting");
    kept.out(&["start", "box"]);
    kept.out(&["rm", "-f", "box"]);
    assert!(processes(&kept).is_empty());
    assert_eq!(kept.out(&["gc"]), "");
}

#[test]
fn one_that_hangs_keeps_nobody_from_the_others() {
    let kept = Kept::new();
    kept.keep(&[], SERVER);
    kept.out(&["run", "-d", "--name", "other", "--", "sleep", "100000"]);
    // What `inspect` waits for a monitor that says nothing, and what a busy emulated host takes for
    // a few calls; far less than the limit for a keeper that does not answer.
    let soon = |words: &[&str]| {
        let done = kept.0.nelly(words);
        assert!(done.took < scaled(Duration::from_secs(6)), "{words:?} took {:?}", done.took);
        done
    };
    for who in ["monitor", "holder"] {
        kill("STOP", kept.pid(who));
        for words in [
            &["ps", "-a"][..],
            &["ps", "--json"],
            &["inspect", "box"],
            &["inspect", "other"],
            &["logs", "box"],
            &["stats", "other"],
            &["exec", "other", "true"],
            &["update", "--restart", "no", "other"],
            &["gc"],
        ] {
            soon(words).expect(0);
        }
    }
    // A keeper that does not answer is told in a sentence, after the time of one answer.
    let silent = kept.0.nelly(&["exec", "box", "true"]);
    assert!(silent.expect(125).err().contains("does not answer"), "{}", silent.err());
    assert!(silent.took < scaled(Duration::from_secs(15)), "{:?}", silent.took);
    let (keeper, monitor) = (kept.pid("holder"), kept.pid("monitor"));
    let removed = kept.0.nelly(&["rm", "-f", "box"]);
    assert!(removed.expect(0).err().contains("by force"), "{}", removed.err());
    assert!(!runs(keeper) && !runs(monitor));
    soon(&["exec", "other", "true"]).expect(0);
    soon(&["rm", "-f", "other"]).expect(0);
}

/// What is done on a disk of its own, which is filled up to the last byte and freed again. It
/// prints what it found; `$1` is the archive of an image, `$2` the script of a container. The first
/// container ends a while before its machine. What the guest writes meanwhile waits, so that its
/// file system stays sound.
const FULL_DISK: &str = r#"
n() { "$NELLY" "$@" 2>"$TMPDIR/err"; echo "$1: $?"; }
fill() { cat /dev/zero >"$NELLY_HOME/fill" 2>"$TMPDIR/err" || :; }
free() { rm "$NELLY_HOME/fill"; }
told() { grep -qi "no space\|not enough\|free" "$TMPDIR/err" && echo told || cat "$TMPDIR/err"; }
left() { ls "$NELLY_HOME/data/sandboxes" 2>"$TMPDIR/err" | grep -c "^new-" || :; }
mount -t tmpfs -o size=48m full "$NELLY_HOME"
trap '"$NELLY" rm -f box >"$TMPDIR/end" 2>&1' EXIT
fill; n image load -q <"$1"; told; free
n image load -q <"$1"
fill; n create --name box app:1 sh -c "$2"; told; free; left
n create --name box app:1 sh -c "$2"
n start box
n exec box sh -c 'echo kept >/kept; sync /kept'
fill
n ps -q; grep -q "waits until it has room" "$TMPDIR/err" && echo waits
"$NELLY" exec box sh -c 'head -c 8m /dev/zero >/zeros; sync /zeros' 2>"$TMPDIR/err" & writer=$!
n exec box sh -c 'yes $(head -c 1000 /dev/zero | tr "\0" x) | head -c 2m >/proc/1/fd/1; echo goes on'
n ps -q
kill -0 $writer && echo held
free; wait $writer && echo written
n exec box sh -c 'echo more >/proc/1/fd/1'
n run -d --in box app:1 sleep 100000
fill
n exec -d box sh -c 'head -c 8m /dev/zero >/more; sync /more'
sleep 1
n kill -s TERM box
sleep 1
n stop box
free
n ps -a --filter name=box
n logs box >"$TMPDIR/log"; grep -q "bytes of output were lost" "$TMPDIR/err" && echo lost
n start box; n exec box cat /kept; n exec box sh -c 'wc -c </zeros; echo again >/again; sync; cat /again'; n stop -t 1 box
"#;

#[test]
fn a_full_disk_is_told_and_stops_no_container() {
    let kept = Kept::new();
    let image = kept.0.path().join("image.tar");
    fs::write(&image, archive(&kept.0)).unwrap();
    // Its path is longer than the address of a socket may be.
    let (home, temporary) = (kept.0.path().join("h".repeat(200)), kept.0.path().join("tmp"));
    fs::create_dir(&home).unwrap();
    fs::create_dir(&temporary).unwrap();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "[ $(id -u) = 0 ] && m=-m || m=-rm; exec unshare $m sh -c \"$@\"",
        "sh",
        FULL_DISK,
        "sh",
    ]);
    command.arg(&image).arg(SERVER).env("TMPDIR", &temporary).env("NELLY_HOME", &home);
    let like = nelly(&home, &[]);
    command.env("NELLY", like.get_program());
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let done = run(&mut command, b"", LIMIT);
    let said = done.out();
    let (id, status) =
        (|line: &&str| line.len() == 64 || line.len() == 12, |line: &&str| line.contains("box "));
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with("ID ") && !id(line)).collect();
    let ends: Vec<_> = lines.iter().filter(|line| status(line)).collect();
    assert!(ends.len() == 1 && ends[0].ends_with("Exited (unclean)"), "what could not be written: {said}");
    let lines: Vec<_> =
        lines.into_iter().filter(|line| !status(line) && !line.starts_with("sha256:")).collect();
    let expected = "image: 1|told|image: 0|create: 1|told|0|create: 0|box|start: 0|exec: 0|ps: 0|waits|goes on|exec: 0|ps: 0|held|written|exec: 0|\
                    run: 0|exec: 0|box|kill: 0|box|stop: 0|ps: 0|lost|box|start: 0|kept|exec: 0|8388608|again|exec: 0|box|stop: 0";
    assert_eq!(lines.join("|"), expected, "{said}\n{}", done.err());
}

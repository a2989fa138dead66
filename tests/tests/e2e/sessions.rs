//! Execs whose output is whole however they end, sessions that outlive their clients, and events.

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nelly_tests::{nelly, program, run, scaled, wait};
use serde_json::Value;

use super::LIMIT;
use super::keeper::{Kept, SERVER, spawn};
use super::terminal::Tmux;

/// How often what may be lost by chance is tried: 6 times, or what `NELLY_REPEATS` says; a sixth of
/// that, and two at least, where each try boots a machine.
fn repeats() -> usize {
    std::env::var("NELLY_REPEATS").map_or(6, |word| word.parse().expect("NELLY_REPEATS is a number"))
}

/// A script that writes so many MiB and a little more, and ends at once with `code`, and all that
/// it writes: the number of the round and numbered lines, in writes as large as `cat` makes them.
fn flood(round: usize, mib: usize, code: u8) -> (String, String) {
    let lines: String = (1..=8192_u64).map(|line| format!("{}\n", 100_000_000_000_000 + line)).collect();
    let times = mib * 8;
    let script = format!(
        "[ -e /tmp/lines ] || seq 100000000000001 100000000008192 >/tmp/lines
        echo round {round}; cat $(yes /tmp/lines | head -n {times}); exit {code}"
    );
    (script, format!("round {round}\n{}", lines.repeat(times)))
}

/// How many MiB are written at once: 8, and 1 on a terminal, which passes on 4 KiB at a time.
fn mib(flags: &[&str]) -> usize {
    if flags.contains(&"-t") { 1 } else { 8 }
}

/// `text` as a terminal prints it.
fn on_terminal(text: &str) -> String {
    text.replace('\n', "\r\n")
}

#[test]
fn the_output_of_an_exec_is_whole_however_soon_it_ends() {
    let kept = Kept::new();
    kept.keep(&[], SERVER);
    let lines: String = (1..=2000).map(|line| format!("{line}\n")).collect();
    let kinds: [&[&str]; 3] = [&[], &["-t"], &["--session"]];
    for (round, flags) in kinds.into_iter().cycle().take(repeats()).enumerate() {
        let little = ("seq 1 2000; exit 5".to_owned(), lines.clone());
        for ((script, whole), code) in [(little, 5), (flood(round, mib(flags), 3), 3)] {
            let words = [&["exec"], flags, &["box", "sh", "-c", &script]].concat();
            let whole = if flags.contains(&"-t") { on_terminal(&whole) } else { whole };
            assert!(kept.0.nelly(&words).expect(code).out() == whole, "round {round}, {flags:?}: {script}");
        }
    }
    // 8 MiB of input.
    let input: Vec<u8> =
        (0..8_u32 << 20).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let inside = kept.0.feed(&["exec", "-i", "box", "sha256sum"], &input);
    let outside = run(&mut Command::new("sha256sum"), &input, LIMIT);
    assert_eq!(inside.expect(0).out(), outside.expect(0).out());
    // A reader that leaves is told to the writer, as a pipe tells it.
    let mut words = nelly(kept.0.path(), &["exec", "box", "sh", "-c", "yes; echo $? >/tmp/code"]);
    let mut client = words.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut reader = client.stdout.take().unwrap();
    reader.read_exact(&mut [0; 4096]).unwrap();
    drop(reader);
    assert_eq!(wait(&mut client, LIMIT).code(), Some(0));
    let code = kept.exec("cat /tmp/code");
    assert!(["1", "141"].contains(&code.as_str()), "{code}");
    kept.0.nelly(&["exec", "box", "sh", "-c", "kill -TERM $$"]).expect(143);
}

/// The first process of a sandbox ends with its machine: nothing of what it wrote is left in there.
#[test]
fn the_output_of_a_run_is_whole_however_soon_it_ends() {
    let kept = Kept::new();
    let kinds: [&[&str]; 4] = [&["--rm"], &["-t"], &[], &["--rm", "-t"]];
    for (round, flags) in kinds.into_iter().cycle().take(repeats().div_ceil(6).max(2)).enumerate() {
        let (script, whole) = flood(round, mib(flags), 4);
        let words = [&["run"], flags, &["--name", "box", "--", "sh", "-c", &script]].concat();
        let whole = if flags.contains(&"-t") { on_terminal(&whole) } else { whole };
        assert!(kept.0.nelly(&words).expect(4).out() == whole, "round {round}, {flags:?}");
        if !flags.contains(&"--rm") {
            assert!(kept.0.nelly(&["logs", "box"]).expect(0).out() == whole, "{flags:?}");
            kept.out(&["rm", "box"]);
        }
    }
}

/// The execs that run, as `nelly exec --list` prints them, without the heading.
fn listed(kept: &Kept) -> Vec<Vec<String>> {
    let all = kept.out(&["exec", "--list", "box"]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    all.lines().skip(1).map(words).collect()
}

#[test]
fn a_session_is_left_and_returned_to_until_it_ends() {
    let kept = Kept::new();
    // What happens meanwhile is told.
    let events = Events::of(&kept);
    kept.keep(&[], SERVER);
    let tmux = Tmux::new(&kept.0, "80", "24");
    let nelly = format!("NELLY_HOME={} {}", kept.0.path().display(), program("nelly").display());
    tmux.see("host#");
    tmux.line(&format!(
        "clear; {nelly} exec --session -it --detach-keys ctrl-p,ctrl-q -e 'PS1=box# ' box sh; echo code-$?"
    ));
    tmux.see("box#");
    tmux.line("echo mark-$((40 + 2))");
    tmux.see("mark-42");
    let one = listed(&kept);
    assert_eq!((one.len(), one[0].last().unwrap().as_str()), (1, "yes"), "{one:?}");
    let id = one[0][0].clone();
    assert_eq!(kept.out(&["exec", "--list", "-q", "box"]), id);
    let shown: Value = serde_json::from_str(&kept.out(&["exec", "--list", "--json", "box"])).unwrap();
    assert_eq!((&shown[0]["id"], &shown[0]["container"]), (&id.as_str().into(), &kept.record()["id"]));
    assert!(kept.0.nelly(&["exec", "--list", "box/none"]).expect(125).err().contains("no container none"));
    // Left by the keys that were asked for.
    tmux.keys(&["C-p", "C-q"]);
    tmux.see("goes on");
    tmux.see("code-0");
    let shown: Value = serde_json::from_str(&kept.out(&["inspect", "box"])).unwrap();
    let exec = &shown[0]["execs"][0];
    assert_eq!(
        (exec["id"].as_str(), &exec["session"], &exec["clients"]),
        (Some(id.as_str()), &true.into(), &0.into())
    );
    // Returned to by the beginning of its id; the latest is shown; an end of input in a terminal.
    tmux.line(&format!("clear; {nelly} attach --exec {} box; echo code-$?", &id[..5]));
    tmux.see("mark-42");
    tmux.line("cat; echo cat-$?");
    tmux.line("typed");
    tmux.keys(&["C-d"]);
    tmux.see("cat-0");
    // A second client sees the same, and its death is nobody's end.
    let mut second = spawn(kept.0.path(), &["attach", "--no-stdin", "--exec", &id, "box"]);
    kept.until("two are attached", || listed(&kept)[0][listed(&kept)[0].len() - 2] == "2");
    second.kill().unwrap();
    second.wait().unwrap();
    tmux.line("echo there-$((1 + 1))");
    tmux.see("there-2");
    tmux.line("exit 7");
    tmux.see("code-7");
    assert!(listed(&kept).is_empty());
    // Whoever comes late still gets all of it.
    let late = kept.0.nelly(&["attach", "--exec", &id, "box"]);
    let said = late.expect(7).out();
    assert!(said.contains("mark-42") && said.contains("there-2"), "{said}");
    // Without a terminal: its client is killed, it goes on, and ends by a signal of its own.
    let mut client = spawn(
        kept.0.path(),
        &["exec", "--session", "box", "sh", "-c", "echo out; echo err >&2; exec sleep 3000"],
    );
    let mut said = [0; 4];
    client.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!((&said, listed(&kept).len()), (b"out\n", 1));
    client.kill().unwrap();
    client.wait().unwrap();
    let id = listed(&kept)[0][0].clone();
    kept.until("it is alone", || listed(&kept)[0].iter().rev().nth(1).unwrap() == "0");
    assert!(kept.0.nelly(&["kill", "--exec", "zz", "box"]).expect(1).err().contains("no exec"));
    kept.out(&["kill", "-s", "TERM", "--exec", &id, "box"]);
    kept.until("it ended", || listed(&kept).is_empty());
    let late = kept.0.nelly(&["attach", "--exec", &id, "box"]);
    assert_eq!((late.expect(143).out().as_str(), late.err().as_str()), ("out\n", "err\n"));
    // A sandbox of its own is left by the same keys, and returned to.
    tmux.line(&format!(
        "clear; {nelly} run -it --name fg --detach-keys ctrl-o,d -e 'PS1=fg# ' -- sh; echo code-$?"
    ));
    tmux.see("fg#");
    tmux.keys(&["C-o", "d"]);
    tmux.see("sandbox fg goes on");
    tmux.see("code-0");
    // By others, too, which are no others' then.
    tmux.line(&format!("clear; {nelly} attach --detach-keys ctrl-a,q fg; echo code-$?"));
    tmux.see("fg#");
    tmux.line("echo there-$((2 + 1))");
    tmux.see("there-3");
    tmux.keys(&["C-a", "q"]);
    tmux.see("sandbox fg goes on");
    tmux.see("code-0");
    tmux.line(&format!("clear; {nelly} attach fg; echo code-$?"));
    tmux.see("fg#");
    tmux.line("exit 6");
    tmux.see("code-6");
    kept.out(&["rm", "fg"]);
    // A client that is killed and a signal that is sent before the exec has begun lose nothing.
    for _ in 0..3 {
        let mut client = spawn(kept.0.path(), &["exec", "--session", "box", "sleep", "3000"]);
        kept.until("it is listed", || listed(&kept).len() == 1);
        client.kill().unwrap();
        client.wait().unwrap();
        let id = listed(&kept)[0][0].clone();
        kept.out(&["kill", "-s", "TERM", "--exec", &id, "box"]);
        kept.until("it ended", || listed(&kept).is_empty());
        let late = kept.0.nelly(&["attach", "--exec", &id, "box"]);
        late.expect(143);
    }
    kept.out(&["stop", "box"]);
    kept.out(&["rm", "box"]);
    let told = events.until("removed");
    let words: Vec<&str> = told.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(words, ["created", "started", "running", "exited", "removed"]);
    assert_eq!((&told[3]["code"], &told[3]["reason"]), (&3.into(), &"exited".into()));
    events.end();
}

/// `nelly events` while a test runs.
pub(super) struct Events<'kept> {
    kept: &'kept Kept,
    child: std::process::Child,
}

impl<'kept> Events<'kept> {
    /// Begins, and waits until the watch has begun: it tells of a sandbox that is there already.
    pub(super) fn of(kept: &'kept Kept) -> Self {
        kept.out(&["create", "--name", "earlier", "--", "true"]);
        let mut events = nelly(kept.0.path(), &["events", "--json", "--since", "1h"]);
        let child = events.stdout(File::create(Self::log(kept)).unwrap()).spawn().unwrap();
        let events = Self { kept, child };
        events.wait("the watch begins", |told| told.iter().any(|event| event["name"] == "earlier"));
        kept.out(&["rm", "earlier"]);
        events
    }

    fn log(kept: &Kept) -> std::path::PathBuf {
        kept.0.path().join("events")
    }

    /// All events so far.
    fn all(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(Self::log(self.kept)).unwrap();
        // The last line may be in the middle of being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until what was told fits.
    #[track_caller]
    pub(super) fn wait(&self, what: &str, fits: impl Fn(&[Value]) -> bool) {
        let limit = Instant::now() + scaled(LIMIT);
        while !fits(&self.all()) {
            assert!(Instant::now() < limit, "waited in vain until {what}: {:?}", self.all());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for an event of the sandbox `box`; all of its events so far.
    #[track_caller]
    pub(super) fn until(&self, event: &str) -> Vec<Value> {
        let of_box = |told: &[Value]| -> Vec<Value> {
            told.iter().filter(|event| event["name"] == "box").cloned().collect()
        };
        self.wait(event, |told| of_box(told).last().is_some_and(|last| last["event"] == event));
        of_box(&self.all())
    }

    /// Ends the watch, as Ctrl-C does.
    pub(super) fn end(mut self) {
        super::keeper::kill("INT", self.child.id().into());
        assert_eq!(wait(&mut self.child, LIMIT).code(), Some(0));
    }
}

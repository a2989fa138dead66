//! `nelly run -it` in a real terminal (tmux): size, resize, Ctrl-C, a full-screen editor, and the
//! terminal as it was.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nelly_tests::{program, run, scaled};

use super::{Home, LIMIT};

/// A tmux server of this test's own.
pub(super) struct Tmux {
    socket: String,
}

impl Tmux {
    pub(super) fn new(home: &Home, columns: &str, rows: &str) -> Self {
        let tmux = Self { socket: home.path().join("tmux").display().to_string() };
        tmux.ask(&["new-session", "-d", "-x", columns, "-y", rows, "env", "PS1=host# ", "sh"]);
        tmux
    }

    pub(super) fn ask(&self, words: &[&str]) -> String {
        let done =
            run(Command::new("tmux").args(["-f", "/dev/null", "-S", &self.socket]).args(words), b"", LIMIT);
        done.expect(0).out()
    }

    pub(super) fn keys(&self, keys: &[&str]) {
        self.ask(&[&["send-keys"], keys].concat());
    }

    /// Types a line.
    pub(super) fn line(&self, text: &str) {
        self.ask(&["send-keys", "-l", text]);
        self.keys(&["Enter"]);
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    pub(super) fn see(&self, text: &str) -> String {
        let until = Instant::now() + scaled(LIMIT);
        loop {
            let asked = Instant::now();
            let screen = self.ask(&["capture-pane", "-p"]);
            if screen.contains(text) {
                return screen;
            }
            assert!(Instant::now() < until, "{text:?} did not appear:\n{screen}");
            // Longer than an answer takes: most of the processor is for what is awaited.
            thread::sleep(2 * asked.elapsed().max(Duration::from_millis(50)));
        }
    }
}

/// What `--result` wrote, once it is there.
#[track_caller]
fn result(path: &Path) -> serde_json::Value {
    let until = Instant::now() + scaled(LIMIT);
    loop {
        // Written at once, but seen empty between its making and its writing.
        if let Ok(object) = serde_json::from_slice(&fs::read(path).unwrap_or_default()) {
            return object;
        }
        assert!(Instant::now() < until, "{} did not come", path.display());
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_terminal_that_hangs_up_ends_what_ran_in_it() {
    let home = Home::new();
    let tmux = Tmux::new(&home, "80", "24");
    let place = home.path().display().to_string();
    let program = program("nelly").display().to_string();
    let fifo = home.path().join("fifo");
    run(Command::new("mkfifo").arg(&fifo), b"", LIMIT).expect(0);
    // With a terminal and without, by a shell and without one, and one that was told not to hear of
    // it.
    let run = |name: &str, flags: &str, command: &str| {
        format!("NELLY_HOME={place} {program} run --rm {flags} --result {place}/{name} -- {command}")
    };
    let say = "sh -c 'echo up-$((40 + 2)); exec sleep 100000'";
    let windows = [
        run("with", "-it", say),
        run("without", "", say),
        format!(
            "exec nohup env {} <{place}/fifo 2>/dev/null",
            run("ignoring", "-i", "sh -c 'echo ready; cat'")
        ),
    ];
    tmux.see("host#");
    tmux.line(&windows[0]);
    tmux.see("up-42");
    tmux.ask(&["new-window", "sh"]);
    tmux.line(&windows[1]);
    tmux.see("up-42");
    tmux.ask(&["new-window", "sh", "-c", &format!("cd {place}; {}", windows[2])]);
    let mut input = fs::File::options().write(true).open(&fifo).unwrap();
    let output = home.path().join("nohup.out");
    let until = Instant::now() + scaled(LIMIT);
    while fs::read_to_string(&output).unwrap_or_default() != "ready\n" {
        assert!(Instant::now() < until, "the third did not start");
        thread::sleep(Duration::from_millis(100));
    }
    drop(tmux);
    for name in ["with", "without"] {
        let object = result(&home.path().join(name));
        assert_eq!((&object["exit"], &object["reason"]), (&129.into(), &"hung_up".into()), "{name}");
    }
    // Longer than the grace of the others, and it still listens.
    input.write_all(b"alive\n").unwrap();
    drop(input);
    assert_eq!(result(&home.path().join("ignoring"))["exit"], 0);
    assert_eq!(fs::read_to_string(&output).unwrap(), "ready\nalive\n");
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-S", &self.socket, "kill-server"]).status();
    }
}

#[test]
fn a_shell_in_a_terminal_is_a_shell_in_a_terminal() {
    let home = Home::new();
    let tmux = Tmux::new(&home, "90", "25");
    tmux.see("host#");
    tmux.line("stty -g > before");
    tmux.line(&format!(
        "NELLY_HOME={} {} run -it -e 'PS1=box# ' -- sh; echo code-$?",
        home.path().display(),
        program("nelly").display()
    ));
    tmux.see("box#");
    tmux.line("echo size-$(stty size | tr ' ' x)");
    tmux.see("size-25x90");
    tmux.ask(&["resize-window", "-x", "70", "-y", "20"]);
    tmux.line("until stty size | grep 20; do sleep 0.1; done; echo size-$(stty size | tr ' ' x)");
    tmux.see("size-20x70");
    // Ctrl-C reaches the program, not nelly, and the shell lives on.
    tmux.line("echo asleep-$((40 + 2)); sleep 1000");
    tmux.see("asleep-42");
    tmux.keys(&["C-c"]);
    tmux.line("echo alive-$?");
    tmux.see("alive-130");
    // A full-screen editor: type, save, leave.
    tmux.line("clear; vi /tmp/note");
    tmux.see("\n~\n~\n");
    tmux.keys(&["i"]);
    tmux.ask(&["send-keys", "-l", "written in vi"]);
    tmux.keys(&["Escape"]);
    tmux.line(":wq");
    tmux.see("box#");
    tmux.line("clear; cat /tmp/note");
    tmux.see("written in vi");
    tmux.line("exit 9");
    tmux.see("code-9");
    tmux.line("clear; stty -g > after; cmp before after && echo restored");
    tmux.see("restored");
}

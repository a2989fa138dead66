//! `nelly run -it` in a real terminal (tmux): size, resize, Ctrl-C, a full-screen editor, and the
//! terminal as it was.

use std::fs;
use std::io::{Read as _, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nelly_tests::{code, nelly, program, run, scaled, wait};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

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
    tmux.line("sh -c 'echo asleep-$((40 + 2)); exec sleep 1000'");
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

/// A pseudo-terminal without anybody who looks at it: what a program that drives others has.
struct Pseudo {
    /// The end of whoever types and reads.
    own: fs::File,
    /// The terminal.
    terminal: fs::File,
    /// What came, byte strings as they were read.
    came: mpsc::Receiver<Vec<u8>>,
    /// What came and was not looked for yet.
    shown: String,
}

impl Pseudo {
    fn new(rows: u16, columns: u16) -> Self {
        let own = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&own).unwrap();
        unlockpt(&own).unwrap();
        let name = ptsname(&own, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = fs::File::from(rustix::fs::open(name, flags, Mode::empty()).unwrap());
        let own = fs::File::from(own);
        let (mut reader, (sender, came)) = (own.try_clone().unwrap(), mpsc::channel());
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let pseudo = Self { own, terminal, came, shown: String::new() };
        pseudo.resize(rows, columns);
        pseudo
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.own, size).unwrap();
    }

    /// Types keys.
    fn keys(&mut self, text: &str) {
        self.own.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for `text`, and forgets everything up to it.
    #[track_caller]
    fn see(&mut self, text: &str) {
        let until = Instant::now() + scaled(LIMIT);
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.came.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{text:?} did not come ({error}):\n{}", self.shown),
            }
        }
    }
}

/// A process that ends with its test, also with one that fails.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _collected = self.0.wait();
    }
}

#[test]
fn a_program_with_a_pseudo_terminal_has_what_a_person_has() {
    let home = Home::new();
    let mut pseudo = Pseudo::new(25, 90);
    let settings = |pseudo: &Pseudo| format!("{:?}", tcgetattr(&pseudo.terminal).unwrap());
    let before = settings(&pseudo);
    let inside = nelly(home.path(), &["run", "--rm", "-it", "-e", "PS1=box# ", "--", "sh"]);
    // In a session of its own, whose terminal this is.
    let mut command = Command::new("setsid");
    command.arg("-c").arg(inside.get_program()).args(inside.get_args());
    command.envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let end = || pseudo.terminal.try_clone().unwrap();
    let mut child = Ends(command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap());
    pseudo.see("box#");
    assert_ne!(settings(&pseudo), before, "the terminal of a container passes every key on");
    // What is typed is shown, too: the answers are not among it.
    pseudo.keys("echo size-$(stty size | tr ' ' x)\r");
    pseudo.see("size-25x90");
    pseudo.resize(20, 70);
    pseudo.keys("until [ \"$(stty size)\" = '20 70' ]; do sleep 0.1; done; echo resized-$((40 + 2))\r");
    pseudo.see("resized-42");
    // Ctrl-C reaches the program, not nelly, and the shell lives on.
    pseudo.keys("sh -c 'echo asleep-$((1 + 1)); exec sleep 1000'\r");
    pseudo.see("asleep-2");
    pseudo.keys("\x03");
    pseudo.see("box#");
    pseudo.keys("echo alive-$?\r");
    pseudo.see("alive-130");
    pseudo.keys("exit 9\r");
    assert_eq!(code(wait(&mut child.0, LIMIT)), 9);
    assert_eq!(settings(&pseudo), before);
}

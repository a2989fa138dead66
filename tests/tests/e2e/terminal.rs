//! `nelly run -it` in a real terminal (tmux): size, resize, Ctrl-C, a full-screen editor, and the terminal as it was.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nelly_tests::{program, run};

use super::{Home, LIMIT};

/// A tmux server of this test's own.
struct Tmux {
    socket: String,
}

impl Tmux {
    fn new(home: &Home, columns: &str, rows: &str) -> Self {
        let tmux = Self { socket: home.path().join("tmux").display().to_string() };
        tmux.ask(&["new-session", "-d", "-x", columns, "-y", rows, "env", "PS1=host# ", "sh"]);
        tmux
    }

    fn ask(&self, words: &[&str]) -> String {
        let done =
            run(Command::new("tmux").args(["-f", "/dev/null", "-S", &self.socket]).args(words), b"", LIMIT);
        done.expect(0).out()
    }

    fn keys(&self, keys: &[&str]) {
        self.ask(&[&["send-keys"], keys].concat());
    }

    /// Types a line.
    fn line(&self, text: &str) {
        self.ask(&["send-keys", "-l", text]);
        self.keys(&["Enter"]);
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    fn see(&self, text: &str) -> String {
        let until = Instant::now() + LIMIT;
        loop {
            let screen = self.ask(&["capture-pane", "-p"]);
            if screen.contains(text) {
                return screen;
            }
            assert!(Instant::now() < until, "{text:?} did not appear:\n{screen}");
            thread::sleep(Duration::from_millis(100));
        }
    }
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
    thread::sleep(Duration::from_secs(1));
    tmux.line("echo size-$(stty size | tr ' ' x)");
    tmux.see("size-20x70");
    // Ctrl-C reaches the program, not nelly, and the shell lives on.
    tmux.line("sleep 1000");
    thread::sleep(Duration::from_millis(500));
    tmux.keys(&["C-c"]);
    tmux.line("echo alive-$?");
    tmux.see("alive-130");
    // A full-screen editor: type, save, leave.
    tmux.line("vi /tmp/note");
    thread::sleep(Duration::from_secs(1));
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

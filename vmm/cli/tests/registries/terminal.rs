//! Progress and the question for a password, seen through a real terminal (tmux).

use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::{Gate, Home, LIMIT, Registry, pushed_layers, tool};

/// A tmux server of a test's own, with a shell in it.
struct Tmux {
    socket: String,
}

impl Tmux {
    fn new(home: &Home) -> Self {
        let tmux = Self { socket: home.0.path().join("tmux").display().to_string() };
        let (place, data) = (format!("HOME={}", home.0.path().display()), home.0.path().join("nelly"));
        let data = format!("NELLY_HOME={}", data.display());
        let mut words = vec!["new-session", "-d", "-x", "100", "-y", "30", "env", "PS1=host# "];
        words.extend([&place[..], &data, "sh"]);
        tmux.ask(&words);
        tmux.see("host#");
        tmux
    }

    #[track_caller]
    fn ask(&self, words: &[&str]) -> String {
        let begin = ["tmux", "-f", "/dev/null", "-S", &self.socket];
        tool(Path::new("/"), &[&begin[..], words].concat())
    }

    /// Types a line.
    fn line(&self, text: &str) {
        self.ask(&["send-keys", "-l", text]);
        self.ask(&["send-keys", "Enter"]);
    }

    /// A command on a clean screen, and its code behind it.
    fn nelly(&self, words: &str) {
        self.line(&format!("clear; {} {words}; echo code-$?", env!("CARGO_BIN_EXE_nelly")));
    }

    /// Waits until the screen shows `text`; what it shows then.
    #[track_caller]
    fn see(&self, text: &str) -> String {
        let begin = Instant::now();
        loop {
            let screen = self.ask(&["capture-pane", "-p", "-J"]);
            if screen.contains(text) {
                return screen;
            }
            assert!(begin.elapsed() < LIMIT, "{text:?} did not appear:\n{screen}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.ask(&["kill-server"]);
    }
}

#[test]
fn a_password_is_asked_for_and_not_shown() {
    let registry = Registry::start(true);
    let home = Home::new();
    let tmux = Tmux::new(&home);
    let login = format!("login {}", registry.host());
    let answer = |times: u32, password: &str| {
        // What an earlier login asked is not on the screen any more.
        tmux.line(&format!("clear; echo mark-$((40 + {times}))"));
        tmux.see(&format!("mark-{}", 40 + times));
        tmux.nelly(&login);
        tmux.see("User name for");
        tmux.line("user");
        tmux.see("Password: ");
        // Whoever sees the question can type: there is no echo any more.
        tmux.ask(&["send-keys", "-l", password]);
    };
    answer(1, "geheim");
    tmux.ask(&["send-keys", "Enter"]);
    let screen = tmux.see("code-1");
    assert!(screen.lines().any(|line| line.trim_end() == "code-1"), "{screen}");
    assert!(screen.contains("does not accept") && !screen.contains("geheim"), "{screen}");
    // Ctrl-C ends the question, and the terminal shows what is typed again.
    answer(2, "geheim");
    tmux.ask(&["send-keys", "C-c"]);
    let screen = tmux.see("code-130");
    assert!(screen.lines().any(|line| line.trim_end() == "code-130"), "{screen}");
    assert!(screen.contains("interrupted") && !screen.contains("geheim"), "{screen}");
    answer(3, "secret");
    tmux.ask(&["send-keys", "Enter"]);
    let screen = tmux.see("code-0");
    assert!(screen.contains("logged in to") && !screen.contains("secret"), "{screen}");
    tmux.ask(&["send-keys", "-l", "typed"]);
    tmux.see("host# typed");
}

#[test]
fn bars_show_how_far_layers_are_and_ctrl_c_ends_them() {
    let registry = Registry::start(false);
    let digests = pushed_layers(&format!("{}/app", registry.host()), 6 << 20, 4, None);
    let home = Home::new();
    // No layer can be whole, however unevenly they are served, and one has a quarter of it.
    let gate = Gate::start(registry.port, 11 << 19);
    let tmux = Tmux::new(&home);
    let pull = format!("image pull 127.0.0.1:{}/app", gate.port);
    tmux.nelly(&pull);
    // As many at once as are transferred at once, each drawn over, not below.
    let ids = digests.iter().map(|digest| digest.strip_prefix("sha256:").unwrap().get(..12).unwrap());
    let ids: Vec<&str> = ids.collect();
    for id in &ids {
        tmux.see(id);
    }
    let screen = tmux.see("[####");
    for id in ids {
        let line = screen.lines().find(|line| line.trim_start().starts_with(id)).unwrap();
        assert!(line.contains(" of 6.0 MiB"), "{screen}");
        assert_eq!(screen.matches(id).count(), 1, "{screen}");
    }
    tmux.ask(&["send-keys", "C-c"]);
    // What the shell shows after a death by SIGINT.
    tmux.line("echo code-$?");
    tmux.see("code-130");
    gate.state.open.store(true, Ordering::Release);
    tmux.nelly(&pull);
    let screen = tmux.see("code-0");
    assert!(screen.contains("/app@sha256:") && !screen.contains("[#"), "bars go: {screen}");
}

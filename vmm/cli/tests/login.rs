//! A prompt for a password on a real terminal.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

#[test]
fn ctrl_c_at_the_password_ends_with_130_and_gives_the_terminal_back() {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&main).unwrap();
    unlockpt(&main).unwrap();
    let name = ptsname(&main, Vec::new()).unwrap();
    let open = || rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    let user = File::from(open().unwrap());
    let shown = || tcgetattr(&user).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO);
    let home = tempfile::tempdir().unwrap();
    let mut login = Command::new(env!("CARGO_BIN_EXE_nelly"))
        .args(["login", "-u", "me", "localhost:1"])
        .env_clear()
        .env("NELLY_HOME", home.path())
        .env("HOME", home.path())
        .stdin(user.try_clone().unwrap())
        .stderr(Stdio::piped())
        // Not of this process's terminal, which would stop one that changes it.
        .process_group(0)
        .spawn()
        .unwrap();
    let mut said = [0; 10];
    login.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"Password: ");
    assert!(!shown(), "what is typed would be seen");
    // It stays open: a terminal that hangs up loses what was typed.
    let mut main = File::from(main);
    main.write_all(b"secr\x03").unwrap();
    let ended = login.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((ended.status.code(), said.as_ref()), (Some(130), "\nnelly: interrupted\n"));
    assert!(shown());
}

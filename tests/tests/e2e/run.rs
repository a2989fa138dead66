//! `nelly run`: exit codes, streams, what the container sees.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use nelly_tests::{code, nelly, wait};

use super::{Home, LIMIT};

/// One machine for what a container finds, and what it gives back.
#[test]
fn the_container_is_alone_on_an_overlay_with_its_streams_its_code_and_a_loopback() {
    let script = "cat; echo --; echo $$; ls /proc | grep '^[0-9]'; echo --; cat /proc/mounts; echo --
        ls /dev/vd* 2>/dev/null; echo x > /new && cat /new; echo --
        ping -c 2 127.0.0.1 && ping -c 1 ::1; echo err >&2; exit 7";
    let done = Home::new().feed(&["run", "--rm", "-i", "--", "sh", "-c", script], b"hi\n");
    assert_eq!(done.expect(7).err(), "err\n");
    let out = done.out();
    let mut parts = out.split("--\n");
    assert_eq!(parts.next().unwrap(), "hi\n", "its input, to the end");
    // The shell is process 1; `ls` and `grep` are the only others.
    let pids: Vec<_> = parts.next().unwrap().lines().collect();
    assert_eq!(&pids[..2], ["1", "1"], "{out}");
    assert!(pids.len() <= 4, "processes that are not the container's: {out}");
    let mounts = parts.next().unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).expect("a root mount");
    assert!(root.starts_with("overlay / overlay rw"), "{root}");
    assert!(!mounts.contains("/dev/vd"), "{mounts}");
    assert_eq!(parts.next().unwrap(), "x\n", "the disks are not its own, its root can be written");
    // Loopback answers from the first packet, for both families.
    let pings: Vec<_> = parts.collect();
    assert_eq!(pings.concat().matches(" 0% packet loss").count(), 2, "{out}");
}

/// As with a program of the host: a reader that leaves ends whoever goes on writing.
#[test]
fn a_reader_that_leaves_ends_the_writer() {
    let home = Home::new();
    let words = ["run", "--rm", "--", "sh", "-c", "while :; do echo line; done"];
    let mut command = nelly(home.path(), &words);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    child.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert_eq!((&line, code(wait(&mut child, LIMIT))), (b"line\n", 141));
}

#[test]
fn output_that_cannot_be_written_is_no_success() {
    let home = Home::new();
    // The code of a program that failed by itself says more.
    for (script, expected) in [("echo hi", 125), ("echo hi; trap '' PIPE; sleep 1; exit 3", 3)] {
        let mut command = nelly(home.path(), &["run", "--rm", "--", "sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(File::options().write(true).open("/dev/full").unwrap());
        let done = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(expected), "{said}");
        assert!(said.contains("cannot write the container's output: No space left on device"), "{said}");
    }
}

#[test]
fn programs_that_cannot_run_have_their_own_codes() {
    let home = Home::new();
    let done = home.nelly(&["run", "--rm", "--", "/no/such/program"]);
    done.expect(127);
    assert!(done.err().contains("/no/such/program"), "{}", done.err());
    let done = home.nelly(&["run", "--rm", "--", "nosuchcommand"]);
    done.expect(127);
    let done = home.nelly(&["run", "--rm", "--", "/etc/passwd"]);
    done.expect(126);
    assert!(done.err().contains("/etc/passwd"), "{}", done.err());
    home.nelly(&["run", "--rm", "--", "/etc"]).expect(126);
    // The only file of an image, the beginning of a program for another processor.
    let (other, number) = if cfg!(target_arch = "x86_64") { ("aarch64", 183) } else { ("x86_64", 62) };
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(64, 0);
    program[18] = number;
    let tree = home.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("program"), program).unwrap();
    std::fs::set_permissions(tree.join("program"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let done = home.nelly(&["run", "--rm", &format!("rootfs:{}", tree.display()), "/program"]);
    let told = format!("is a program for {other}; the guest is {}", std::env::consts::ARCH);
    assert!(done.expect(126).err().contains(&told), "{}", done.err());
    // The first process of a PID namespace does not hear its own SIGKILL; any other does. (A shell
    // runs its last command in its place.)
    let done = home.sh("kill -9 $$; echo lives; sh -c 'kill -9 $$'; exit $?");
    assert_eq!(done.expect(137).out(), "lives\n");
}

#[test]
fn flags_reach_the_container() {
    let home = Home::new();
    // Without -i there is no input at all.
    let script = "cat; id -u; id -g; pwd; echo $A-$B; hostname; touch /x 2>/dev/null || echo read-only; grep -c ^processor /proc/cpuinfo; df /scratch | tail -n 1 | awk '{print $2}'";
    let words = [
        "run",
        "--rm",
        "-u",
        "1000:1001",
        "-w",
        "/tmp",
        "-e",
        "A=1",
        "--env",
        "B=two",
        "--hostname",
        "Box-1.Example",
        "--read-only",
        "--tmpfs",
        "/scratch:size=1m",
        "--cpus",
        "2",
        "-m",
        "256M",
        "--",
        "sh",
        "-c",
        script,
    ];
    let done = home.feed(&words, b"not for it\n");
    done.expect(0);
    assert_eq!(done.out(), "1000\n1001\n/tmp\n1-two\nBox-1.Example\nread-only\n2\n1024\n", "{}", done.err());
}

#[test]
fn memory_that_runs_out_is_told_from_a_kill() {
    let home = Home::new();
    let result = home.path().join("result.json");
    // A shell that doubles a string until the machine has no memory left.
    let script = "a=xxxxxxxxxxxxxxxx; while :; do a=$a$a$a$a; done";
    let done = home.nelly(&[
        "run",
        "--rm",
        "-m",
        "96M",
        "--result",
        result.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        script,
    ]);
    done.expect(137);
    let object: serde_json::Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    assert_eq!(object["reason"], "oom_killed", "{}", done.err());
}

//! `nelly boot -d`: a machine with a name, which lives as a sandbox does.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;

use nelly_tests::{nelly, run};
use serde_json::Value;

use super::image_boot::image;
use super::{Home, LIMIT};

/// Counts its starts on the disk, tells its instance, answers what is typed, and switches itself
/// off when the power button is pressed.
const SCRIPT: &str = "
    set -e
    mount -t ext4 /dev/vda /mnt
    count=$(($(cat /mnt/count 2>/dev/null || echo 0) + 1))
    echo $count >/mnt/count
    sync
    echo started=$count sectors=$(cat /sys/block/vda/size)
    echo instance=$(tr -d '\\000' </dev/vdb | grep -o 'instance-id[^,}]*' | head -n 1)
    (
        dd if=/dev/input/event0 of=/tmp/event bs=24 count=1 2>/dev/null
        echo pressed
        umount /mnt
        poweroff -f
    ) &
    echo ready
    while read line; do echo \"heard $line\"; done
    while :; do sleep 1000; done
";

/// Types into the console of the machine until its guest has heard it; returns what it said.
fn talk(home: &Home) -> String {
    typed(home, "hello\n", "heard hello")
}

/// Types `words` into the console once its guest is ready, until it has answered so; returns what
/// it said.
pub(crate) fn typed(home: &Home, words: &str, answer: &str) -> String {
    let mut attach = nelly(home.path(), &["attach", "web"]);
    let mut attach = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut said, mut typed) = (String::new(), attach.stdin.take().unwrap());
    for line in BufReader::new(attach.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        said.push_str(line.trim_end());
        said.push('\n');
        if line.starts_with("ready") {
            typed.write_all(words.as_bytes()).unwrap();
        }
        if line.starts_with(answer) {
            break;
        }
    }
    attach.kill().unwrap();
    attach.wait().unwrap();
    assert!(said.contains(answer), "{said}");
    said
}

/// What ssh is told of the machine, without the port, which is another one after each start; that
/// port leads to the machine, and the keys are there.
fn ssh_config(home: &Home) -> String {
    let said = run(&mut nelly(home.path(), &["ssh-config", "web"]), b"", LIMIT).expect(0).out();
    let (config, port) = said.trim_end().rsplit_once("\n    Port ").unwrap();
    TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse().unwrap())).unwrap();
    for file in [key_of(config, "IdentityFile"), key_of(config, "UserKnownHostsFile")] {
        assert!(file.is_file(), "{config}");
    }
    config.to_owned()
}

/// The path behind a word of that.
fn key_of(config: &str, word: &str) -> PathBuf {
    let line = config.lines().find_map(|line| line.trim().strip_prefix(word)).unwrap();
    line.trim().trim_matches('"').into()
}

/// The only machine, as `nelly ps` has it.
fn listed(home: &Home) -> Value {
    let list = run(&mut nelly(home.path(), &["ps", "-a", "--json"]), b"", LIMIT);
    let list: Value = serde_json::from_str(&list.expect(0).out()).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    list[0].clone()
}

fn line<'a>(said: &'a str, begins: &str) -> &'a str {
    said.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("no {begins} in {said}"))
}

#[test]
fn a_named_machine_keeps_its_disk_and_hears_its_power_button() {
    let home = Home::new();
    let modules = ["virtio_mmio", "virtio_blk", "ext4", "button", "evdev"];
    let image = image(&home, SCRIPT, &modules);
    let before = fs::read(&image).unwrap();
    let disk = format!("{},size=1G", image.display());
    let ask = |words: &[&str]| run(&mut nelly(home.path(), words), b"", LIMIT);
    let boot = |more: &[&str]| ask(&[&["boot", "-d", "--name", "web", "--image", &disk], more].concat());

    let made = boot(&[]);
    made.expect(0);
    let messages = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(messages.contains("`nelly start web`"), "{messages}");
    let first = talk(&home);
    assert!(first.contains("started=1 sectors=2097152"), "{first}");
    let one = listed(&home);
    let words = [&one["name"], &one["image"], &one["status"]].map(|word| word.as_str().unwrap().to_owned());
    assert_eq!(words, ["web".to_owned(), image.display().to_string(), "running".to_owned()]);
    assert_eq!(made.out().trim(), one["id"].as_str().unwrap());
    // Its seed has brought keys, of which ssh is told, and a port leads to its sshd.
    assert!(messages.contains("`nelly ssh USER@web`"), "{messages}");
    let config = ssh_config(&home);
    assert!(config.starts_with("Host web\n"), "{config}");
    // It has no agent, and runs already.
    for (words, why) in [
        (&["exec", "web", "true"][..], "has no agent of Nelly"),
        (&["top", "web"][..], "has no agent of Nelly"),
        (&["cp", "web:/etc/fstab", "-"][..], "has no agent of Nelly"),
        (&["boot", "-d", "--name", "web", "--image", &disk][..], "runs already"),
    ] {
        let refused = ask(words);
        let messages = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.code != 0 && messages.contains(why), "{words:?}: {messages}");
    }
    assert!(!ask(&["stats"]).expect(0).out().contains("web"));
    ask(&["stop", "--time", "300s", "web"]).expect(0);
    let exit = listed(&home)["exit"].clone();
    assert_eq!((&exit["code"], &exit["reason"]), (&0.into(), &"power_off".into()));
    let log = ask(&["logs", "web"]);
    assert!(log.expect(0).out().contains("pressed"), "{}", log.out());

    // Over an image that was written since, the disk would be damaged.
    let file = fs::File::options().write(true).open(&image).unwrap();
    let then = file.metadata().unwrap().modified().unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    for refused in [ask(&["start", "web"]), boot(&[])] {
        let messages = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.code != 0 && messages.contains("belong to the old bytes"), "{messages}");
    }
    file.set_modified(then).unwrap();
    drop(file);

    ask(&["start", "web"]).expect(0);
    let second = talk(&home);
    assert!(second.contains("started=2"), "{second}");
    assert_eq!(line(&first, "instance="), line(&second, "instance="));
    ask(&["kill", "web"]).expect(0);
    assert_eq!(ask(&["wait", "web"]).expect(0).out().trim(), "137");

    // Another seed is another instance, on the same disk.
    boot(&["--hostname", "other"]).expect(0);
    let third = talk(&home);
    assert!(third.contains("started=3"), "{third}");
    // The name of its host is another one, the keys are the same.
    assert_eq!(ssh_config(&home), config);
    assert_ne!(line(&first, "instance="), line(&third, "instance="));
    ask(&["rm", "-f", "web"]).expect(0);
    assert_eq!(ask(&["ps", "-a", "-q"]).expect(0).out(), "");
    assert!(!key_of(&config, "IdentityFile").exists(), "keys go with their machine");
    assert!(fs::read(&image).unwrap() == before, "the image was written");
}

//! Further containers in the machine of a sandbox: `nelly run --in`.

use std::process::Stdio;

use nelly_tests::{nelly, wait};

use super::LIMIT;
use super::keeper::{Kept, SERVER, runs, spawn};

#[test]
fn containers_share_a_machine_its_network_and_its_ipc_and_nothing_else() {
    let kept = Kept::new();
    kept.keep(&[], SERVER);
    // In the foreground, as a container of its own: streams, codes, root file system.
    let side = ["run", "--in", "box", "--name", "side", "-i", "--", "sh", "-c"];
    let words = |script| [&side[..], &[script]].concat();
    let fed = kept.0.feed(&words("cat; echo told >&2; hostname; exit 7"), b"fed\n");
    assert_eq!((fed.expect(7).out(), fed.err()), ("fed\nside\n".to_owned(), "told\n".to_owned()));
    let missing = kept.0.nelly(&["run", "--in", "box", "--", "nosuch"]);
    assert!(missing.expect(127).err().contains("nosuch"), "{}", missing.err());
    kept.exec("echo mine >/root/mine");
    let own =
        words("test ! -e /root/mine && echo theirs >/root/theirs && ps | grep -c ' [s]leep 100000'; true");
    assert_eq!(kept.out(&own), "0", "neither files nor processes are shared");
    let spaces = "for name in net ipc pid mnt; do readlink /proc/self/ns/$name; done";
    let (first, further) = (kept.exec(spaces), kept.out(&words(spaces)));
    let shared: Vec<_> = first.lines().zip(further.lines()).map(|(one, other)| one == other).collect();
    assert_eq!(shared, [true, true, false, false], "{first}\n{further}");

    // In the background: a server that the first container reaches by the loopback interface.
    let served = "echo serving; printf page | nc -l -p 8080; sleep 1000";
    let id = kept.out(&["run", "--in", "box", "-d", "--name", "web", "--", "sh", "-c", served]);
    kept.until("it serves", || kept.out(&["logs", "box/web"]) == "serving");
    assert_eq!(kept.exec("until nc 127.0.0.1 8080 </dev/null 2>/dev/null; do sleep 0.1; done"), "page");
    assert_eq!(kept.out(&["exec", "box/web", "hostname"]), "web");
    let listed = kept.out(&["ps"]);
    assert!(listed.contains("box/web") && listed.contains(&id[..12]), "{listed}");
    let taken = kept.0.nelly(&["run", "--in", "box", "--name", "web", "--", "true"]);
    assert!(taken.expect(125).err().contains("the name web"), "{}", taken.err());
    let in_use = kept.0.nelly(&["exec", "box/nosuch", "true"]);
    assert!(in_use.expect(125).err().contains("no container \"nosuch\""), "{}", in_use.err());

    // As many as there are slots; a slot is free again after the end, whoever ends it.
    let mut client = spawn(kept.0.path(), &["run", "--in", "box", "--name", "gone", "--", "sleep", "1000"]);
    let slots = |count| move |name: &str| format!("{name}{count}");
    for count in 0..2 {
        kept.out(&["run", "--in", "box", "-d", "--name", &slots(count)("s"), "--", "sleep", "1000"]);
    }
    kept.until("all run", || kept.out(&["ps"]).matches("box/").count() == 4);
    let full = kept.0.nelly(&["run", "--in", "box", "--", "true"]);
    assert!(full.expect(125).err().contains("cannot attach the image's disk"), "{}", full.err());
    client.kill().unwrap();
    client.wait().unwrap();
    kept.until("it ended with its client", || kept.out(&["ps"]).matches("box/").count() == 3);
    kept.out(&["stop", "--time", "1s", "box/s0"]);
    assert_eq!(kept.out(&["wait", "box/s0"]), "137", "the first process of a container ignores SIGTERM");
    kept.out(&["kill", "box/s1"]);
    kept.until("the slots are free", || kept.0.nelly(&["run", "--in", "box", "--", "true"]).code == 0);

    // The machine ends with its last container, and takes a stop for all.
    kept.out(&["kill", "-s", "TERM", "box"]);
    kept.until("the first container ended", || kept.0.nelly(&["exec", "box", "true"]).code == 125);
    assert_eq!(kept.out(&["exec", "box/web", "echo", "still"]), "still");
    let monitor = kept.pid("monitor");
    let waiting = nelly(kept.0.path(), &["wait", "box"]).stdout(Stdio::piped()).spawn().unwrap();
    kept.out(&["stop", "--time", "1s", "box"]);
    let mut waiting = waiting;
    assert_eq!(wait(&mut waiting, LIMIT).code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&waiting.wait_with_output().unwrap().stdout), "3\n");
    kept.until("the machine is gone", || !runs(monitor));
    // With the machine, what was written in further containers is gone; their logs stay until the
    // next start.
    assert_eq!(kept.out(&["logs", "box/web"]), "serving");
    let refused = kept.0.nelly(&["run", "--in", "box", "--", "true"]);
    assert!(refused.expect(125).err().contains("exited"), "{}", refused.err());
    for (flags, hint) in [(&["-m", "1G"][..], "--memory"), (&["--restart", "always"], "--restart")] {
        let words = [&["run", "--in", "box"], flags, &["--", "true"]].concat();
        assert!(kept.0.nelly(&words).expect(125).err().contains(hint));
    }
}

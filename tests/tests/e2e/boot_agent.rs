//! `nelly boot -d --agent`: the agent as a service of a guest with an init of its own, which the
//! seed brings. The guest has Debian's kernel, and plays cloud-init and systemd.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nelly_tests::{Done, nelly, run};
use serde_json::Value;

use super::boots::typed;
use super::image_boot::image;
use super::{Home, LIMIT};

/// Carries out what the seed says for each start, as cloud-init does, with a systemd that starts a
/// unit's program in a cgroup of its own; counts its starts, serves a port, and hears the power
/// button.
const SCRIPT: &str = "
    set -e
    mount -t ext4 /dev/vda /mnt
    echo $(($(cat /mnt/count 2>/dev/null || echo 0) + 1)) >/mnt/count
    sync
    ip link set lo up
    date -s '2001-02-03 04:05:06' >/dev/null
    mkdir -p /run/systemd/system /usr/local/sbin /dev/disk/by-id /tmp/seed
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    cat >/bin/systemctl <<'SYSTEMCTL'
#!/bin/sh
[ \"$*\" = 'daemon-reload' ] && exit
mkdir -p /sys/fs/cgroup/agent.service
program=$(sed -n 's/^ExecStart=//p' /run/systemd/system/nelly-agent.service)
(echo 0 >/sys/fs/cgroup/agent.service/cgroup.procs; exec $program) </dev/null &
SYSTEMCTL
    chmod 755 /bin/systemctl
    ln -s /dev/vdb /dev/disk/by-id/virtio-seed
    mount -t vfat -o ro /dev/vdb /tmp/seed
    sed 1d /tmp/seed/vendor-data >/tmp/hook
    grep -c 'echo of the user' /tmp/seed/user-data
    umount /tmp/seed
    if [ $(cat /mnt/count) = 1 ]; then echo ready; read line; echo going; fi
    nc -ll -p 7000 -e cat &
    sh /tmp/hook
    echo hooked=$?
    dd if=/dev/input/event0 of=/tmp/event bs=24 count=1 2>/dev/null
    echo pressed
    umount /mnt
    poweroff -f
";

/// What Debian's kernel has as modules of what that needs.
const MODULES: [&str; 9] = [
    "virtio_mmio",
    "virtio_blk",
    "ext4",
    "nls_cp437",
    "nls_ascii",
    "vfat",
    "vmw_vsock_virtio_transport",
    "button",
    "evdev",
];

fn said(done: &Done) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

#[test]
fn an_agent_of_the_seed_serves_a_machine_with_its_own_init() {
    let home = Home::new();
    let image = image(&home, SCRIPT, &MODULES);
    let ask = |words: &[&str]| run(&mut nelly(home.path(), words), b"", LIMIT);
    let socket = home.path().join("echo.sock");
    let relay = format!("{}=7000", socket.display());
    let data = home.path().join("user-data");
    fs::write(&data, "#!/bin/sh\necho of the user\n").unwrap();
    let words = ["boot", "-d", "--name", "web", "--image", image.to_str().unwrap(), "--user-data"];
    // In the guest, somebody else listens at that port.
    let taken = format!("7000=unix:{}", home.path().join("none.sock").display());
    let more = [data.to_str().unwrap(), "--agent", "--relay", &relay, "--relay-out", &taken];
    ask(&[&words[..], &more].concat()).expect(0);
    let late = ask(&["wait", "--agent", "--time", "100ms", "web"]);
    assert!(late.code != 0 && said(&late).contains("did not answer within 0.1 s"), "{}", said(&late));
    let early = ask(&["exec", "web", "true"]);
    assert!(early.code != 0 && said(&early).contains("is not there yet"), "{}", said(&early));
    // Its relay has its address, and leads nowhere yet.
    let limit = Instant::now() + LIMIT;
    while !socket.exists() {
        assert!(Instant::now() < limit, "no relay listens");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut nobody = UnixStream::connect(&socket).unwrap();
    nobody.set_read_timeout(Some(LIMIT)).unwrap();
    let read = nobody.read(&mut [0]);
    let reset = std::io::ErrorKind::ConnectionReset;
    assert!(read.as_ref().map_or_else(|error| error.kind() == reset, |count| *count == 0), "{read:?}");

    typed(&home, "go\n", "going");
    ask(&["wait", "--agent", "web"]).expect(0);
    let shown = || {
        let shown: Value = serde_json::from_str(&ask(&["inspect", "web"]).expect(0).out()).unwrap();
        shown[0]["relays"].clone()
    };
    let limit = Instant::now() + LIMIT;
    let told = loop {
        let relays = shown();
        match relays.as_array().unwrap().iter().find(|one| one["listens"] == "guest") {
            Some(one) => break one["last_failure"].as_str().unwrap().to_owned(),
            None => assert!(Instant::now() < limit, "{relays}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(told.starts_with("it does not listen: ") && told.contains("in use"), "{told}");
    let answers = |count: &str| {
        let limit = Instant::now() + LIMIT;
        loop {
            let done = ask(&["exec", "web", "cat", "/mnt/count"]);
            if done.code == 0 && done.out() == count {
                break;
            }
            let log = ask(&["logs", "web"]).out();
            assert!(Instant::now() < limit, "{} {}: {log}", done.out(), said(&done));
            std::thread::sleep(Duration::from_millis(500));
        }
    };
    answers("1\n");
    // In the guest itself, as who is asked for.
    let own = ask(&[
        "exec",
        "web",
        "sh",
        "-c",
        "for id in self 1; do readlink /proc/$id/ns/mnt; done | uniq | wc -l; cat /proc/1/comm; exit 7",
    ]);
    assert_eq!((own.code, own.out()), (7, "1\ninit\n".to_owned()), "{}", said(&own));
    let user = ask(&["exec", "-u", "1000:1000", "web", "sh", "-c", "id -u; grep CapEff /proc/self/status"]);
    assert_eq!(user.expect(0).out(), "1000\nCapEff:\t0000000000000000\n");
    let typed = run(&mut nelly(home.path(), &["exec", "-i", "web", "cat"]), b"typed", LIMIT);
    assert_eq!(typed.expect(0).out(), "typed");
    let clock = ask(&["exec", "web", "date", "+%Y"]).expect(0).out();
    let year: u32 = clock.trim().parse().unwrap();
    assert!(year > 2020, "its clock was set to 2001, and is the host's now: {year}");
    // Files, both ways.
    let page = home.path().join("page");
    fs::write(&page, "from the host").unwrap();
    ask(&["cp", page.to_str().unwrap(), "web:/mnt/page"]).expect(0);
    let back = home.path().join("back");
    ask(&["cp", "web:/mnt/page", back.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read_to_string(&back).unwrap(), "from the host");
    // Figures of the whole guest.
    assert!(ask(&["top", "web"]).expect(0).out().contains("/init"), "{}", ask(&["top", "web"]).out());
    let stats: Value = serde_json::from_str(&ask(&["stats", "--json", "web"]).expect(0).out()).unwrap();
    assert!(stats[0]["memory_current_bytes"].as_u64().unwrap() > 1 << 20, "{stats}");
    assert_eq!(stats[0]["memory_limit_bytes"], stats[0]["guest_memory_total_bytes"], "{stats}");
    let echoed = || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"through the relay").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(echoed(), "through the relay");
    // What is for containers alone is refused.
    for (words, why) in [
        (&["diff", "web"][..], "knows no image"),
        (&["run", "--in", "web", "--", "true"][..], "takes no containers"),
        (&["kill", "--signal", "HUP", "web"][..], "is one of its services"),
    ] {
        let refused = ask(words);
        assert!(refused.code != 0 && said(&refused).contains(why), "{words:?}: {}", said(&refused));
    }
    // It goes with its guest, and comes with the next start.
    ask(&["exec", "-d", "web", "sh", "-c", "sync; sleep 0.1; reboot -f"]).expect(0);
    answers("2\n");
    assert_eq!(echoed(), "through the relay");
    ask(&["stop", "--time", "300s", "web"]).expect(0);
    assert!(!socket.exists(), "its socket goes with it");
    let log = ask(&["logs", "web"]).out();
    assert!(log.contains("hooked=0") && log.contains("pressed") && !log.contains("not started"), "{log}");
}

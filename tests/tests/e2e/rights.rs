//! What flags give a container, and take from it.

use super::Home;

#[test]
fn rights_limits_names_and_a_profile_are_as_asked() {
    let home = Home::new();
    let profile = home.path().join("profile.json");
    let denied = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&profile, denied).unwrap();
    let profile = format!("seccomp={}", profile.display());
    let script = "grep CapEff /proc/self/status; ulimit -Sn; ulimit -Hn; cat /proc/sys/net/ipv4/ip_forward; \
                  df -k /dev/shm | tail -n 1 | awk '{print $2}'; cat /sys/fs/cgroup/pids.max; id -G; \
                  grep db /etc/hosts; chown 1:1 /tmp 2>/dev/null || echo refused; \
                  grep Seccomp: /proc/self/status; mkdir /tmp/made 2>/dev/null || echo refused; touch /tmp/t && echo done";
    let words = [
        "run",
        "--rm",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "net_admin",
        "--ulimit",
        "nofile=123:456",
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--shm-size",
        "3M",
        "--pids-limit",
        "17",
        "--group-add",
        "77",
        "--add-host",
        "db:10.0.0.2",
        "--platform",
        "linux/amd64",
        "--security-opt",
        &profile,
        "--",
        "sh",
        "-c",
        script,
    ];
    let done = home.nelly(&words);
    done.expect(0);
    let expected = "CapEff:\t0000000000001000\n123\n456\n1\n3072\n17\n0 77\n10.0.0.2\tdb\nrefused\nSeccomp:\t2\nrefused\ndone\n";
    assert_eq!(done.out(), expected);
}

#[test]
fn a_privileged_container_has_the_machine() {
    let home = Home::new();
    let script = "set -e; grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; mount -t tmpfs x /mnt; \
                  dd if=/dev/vda of=/dev/null bs=4096 count=1 2>/dev/null; test -c /dev/kmsg; readlink /dev/fd; \
                  mkdir /sys/fs/cgroup/inner; echo 1 > /proc/sys/kernel/sysrq; echo x > /dev/stderr; echo done";
    let done = home.nelly(&["run", "--rm", "--privileged", "--", "sh", "-c", script]);
    done.expect(0);
    let expected = "CapEff:\t000001ffffffffff\nSeccomp:\t0\n/proc/self/fd\ndone\n";
    assert_eq!(done.out(), expected);
}

#[test]
fn an_unconfined_container_has_no_profile() {
    let script = "grep Seccomp: /proc/self/status; mkdir /tmp/made 2>/dev/null || echo refused; echo done";
    let words = ["run", "--rm", "--security-opt", "seccomp=unconfined", "--", "sh", "-c", script];
    assert_eq!(Home::new().nelly(&words).expect(0).out(), "Seccomp:\t0\ndone\n");
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    let home = Home::new();
    for (words, what) in [
        (["--platform", "linux/s390x"], "linux/s390x"),
        (["--cap-add", "WINGS"], "WINGS"),
        (["--ulimit", "nofile=2:1"], "soft limit"),
        (["--add-host", "db"], "NAME:ADDRESS"),
    ] {
        let done = home.nelly(&[&["run", "--rm"], &words[..], &["--", "true"]].concat());
        let error = done.expect(125).err();
        assert!(error.contains(what) && error.contains(words[0]), "{error}");
    }
    let done = home.nelly(&["run", "--rm", "--sysctl", "no.such.parameter=1", "--", "true"]);
    assert!(done.expect(125).err().contains("no/such/parameter"), "{}", done.err());
}

//! Rules of names and the log of a user-mode network, seen by a guest of an ordinary user.

use std::os::unix::fs::PermissionsExt as _;

use nelly_tests::top;
use serde_json::Value;

use super::machine::busybox;
use super::network::World;
use super::user::home;

#[test]
fn a_name_opens_its_addresses_for_whom_it_names_and_everything_is_told() {
    let home = home();
    let _world = World::new();
    let log = home.path().join("log");
    // The answers as they come, REFUSED among them.
    let root = home.path().join("root");
    busybox(&root, &["sh", "nc", "ping", "tail"]);
    let helper = top().join("target/nelly/tests/guest-look");
    std::fs::copy(&helper, root.join("bin/guest-look")).expect("it is built");
    let ask = |what: &str, name: &str, kind: u8| {
        format!("echo {what} $(guest-look --ask 10.0.2.3:53 {name} {kind} 2>&1); ")
    };
    let get = |name: &str, address: &str, host: &str| {
        let request = format!("GET / HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n");
        let said = format!("printf '{request}' | nc -w 5 {address} 2>/dev/null | tail -n 1");
        format!("x=$({said}); echo {name} ${{x:-refused}}; ")
    };
    let script = [
        get("directly", "203.0.113.10 80", "www.example"),
        ask("other", "other.example", 1),
        ask("name", "www.example", 1),
        get("four", "203.0.113.10 80", "www.example"),
        get("fronted", "203.0.113.10 80", "other.example"),
        get("nobody", "203.0.113.10 80", "203.0.113.10"),
        get("port", "203.0.113.10 9001", "www.example"),
        get("early6", "2001:db8::10 80", "www.example"),
        ask("name6", "www.example", 28),
        get("six", "2001:db8::10 80", "www.example"),
        "ping -c 1 -W 2 203.0.113.10 >/dev/null || echo ping refused".to_owned(),
    ]
    .concat();
    let image = format!("rootfs:{}", root.display());
    let log_path = log.to_str().expect("text");
    let words =
        ["run", "--rm", "--net", "user,default=deny", "--allow", "www.example:80", "--net-log", log_path];
    let words = [&words[..], &["--dns", "203.0.113.53", &image, "sh", "-c", &script]].concat();
    let done = home.nelly(&words);
    done.expect(0);
    let (out, lines) = (done.out(), std::fs::read_to_string(&log).expect("a log"));
    for line in [
        "directly refused\n",
        // REFUSED, under its own number.
        "other 12348185",
        "name 12348180",
        // Its answer ends with the address.
        "cb00710a\n",
        "four hello from 203.0.113.10\n",
        "fronted refused\n",
        "nobody refused\n",
        "port refused\n",
        "early6 refused\n",
        "six hello from 2001:db8::10\n",
        "ping refused\n",
    ] {
        assert!(out.contains(line), "{line:?} is not in\n{out}\n{}\n{lines}", done.err());
    }
    assert_eq!(std::fs::metadata(&log).expect("a log").permissions().mode() & 0o777, 0o600);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for (verdict, protocol, to, name, word) in [
        ("denied", "tcp", "203.0.113.10:80", "", "not allowed by a rule"),
        ("denied", "dns", "", "other.example", "not allowed by a rule"),
        ("allowed", "dns", "", "www.example", "allow www.example:80"),
        ("allowed", "tcp", "203.0.113.10:80", "www.example", "allow www.example:80"),
        ("denied", "tcp", "203.0.113.10:80", "www.example", "for other.example"),
        ("denied", "tcp", "203.0.113.10:80", "www.example", "names no host"),
        ("denied", "tcp", "203.0.113.10:9001", "www.example", "not allowed by a rule"),
        ("denied", "tcp", "[2001:db8::10]:80", "", "not allowed by a rule"),
        ("allowed", "tcp", "[2001:db8::10]:80", "www.example", "allow www.example:80"),
        ("denied", "icmp", "203.0.113.10", "www.example", "not allowed by a rule"),
    ] {
        let is = |line: &Value, field: &str, what: &str| line[field].as_str().unwrap_or_default() == what;
        let found = lines.iter().any(|line| {
            is(line, "verdict", verdict)
                && is(line, "protocol", protocol)
                && is(line, "to", to)
                && is(line, "name", name)
                && format!("{} {}", line["rule"], line["reason"]).contains(word)
                && line["time"].as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z'))
                && line["from"]
                    .as_str()
                    .is_some_and(|from| from.starts_with("10.0.2.15") || from.starts_with('['))
        });
        assert!(found, "{verdict} {protocol} {to} {name} {word}: {lines:#?}");
    }
}

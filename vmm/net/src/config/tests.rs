use super::*;

#[test]
fn what_is_written_is_read() {
    let mut config = UsernetConfig {
        dns_servers: vec!["127.0.0.53".parse().unwrap(), "[2001:db8::1]:5353".parse().unwrap()],
        search: vec!["example.com".into()],
        allow: vec!["host:8080".parse().unwrap(), "[fd00::/8]:1-9/udp".parse().unwrap()],
        publish: vec!["0:80".parse().unwrap(), "[::1]:53:53/udp".parse().unwrap()],
        guest_mac: Some(Mac([0x52, 0x54, 0, 1, 2, 3])),
        log_fd: Some(7),
        confine: Confine::Off,
        ..UsernetConfig::default()
    };
    for verdict in [Verdict::Deny, Verdict::Allow] {
        config.default = verdict;
        let text = serde_json::to_vec(&config).unwrap();
        assert_eq!(UsernetConfig::from_json(&text).unwrap(), config);
    }
    assert_eq!(UsernetConfig::from_json(b"{\"schema\":1}").unwrap(), UsernetConfig::default());
}

#[test]
fn every_error_names_its_field() {
    for (text, field) in [
        ("", "configuration"),
        ("[]", "configuration"),
        ("{}", "schema"),
        (r#"{"schema":2}"#, "schema"),
        (r#"{"schema":"1"}"#, "schema"),
        (r#"{"schema":1,"mut":1500}"#, "mut"),
        (r#"{"schema":1,"guest_mac":"52:54:00:01:02"}"#, "guest_mac"),
        (r#"{"schema":1,"guest_mac":"ff:ff:ff:ff:ff:ff"}"#, "guest_mac"),
        (r#"{"schema":1,"mtu":1279}"#, "mtu"),
        (r#"{"schema":1,"mtu":65521}"#, "mtu"),
        (r#"{"schema":1,"mtu":99999}"#, "mtu"),
        (r#"{"schema":1,"mtu":-1}"#, "mtu"),
        (r#"{"schema":1,"prefix4":"10.0.2.0/33"}"#, "prefix4"),
        (r#"{"schema":1,"prefix4":"10.0.2.1/24"}"#, "prefix4"),
        (r#"{"schema":1,"prefix4":"10.0.2.0/30"}"#, "prefix4"),
        (r#"{"schema":1,"prefix4":"10.9.0.0/16"}"#, "gateway4"),
        (
            r#"{"schema":1,"prefix4":"240.0.0.0/24","gateway4":"240.0.0.2","dns4":"240.0.0.3","guest4":"240.0.0.4"}"#,
            "prefix4",
        ),
        (r#"{"schema":1,"gateway4":"10.0.2.0"}"#, "gateway4"),
        (r#"{"schema":1,"guest4":"10.0.2.255"}"#, "guest4"),
        (r#"{"schema":1,"guest4":"10.0.2.2"}"#, "guest4"),
        (r#"{"schema":1,"prefix6":"fd00::/48"}"#, "prefix6"),
        (r#"{"schema":1,"dns6":"fd4e:656c:6c79::2"}"#, "dns6"),
        (r#"{"schema":1,"guest6":"fd00::1"}"#, "guest6"),
        (r#"{"schema":1,"dns_servers":["1.1.1.1","x"]}"#, "dns_servers[1]"),
        (r#"{"schema":1,"search":["ok","a..b"]}"#, "search[1]"),
        (r#"{"schema":1,"search":["a b"]}"#, "search[0]"),
        (r#"{"schema":1,"default":"maybe"}"#, "default"),
        (r#"{"schema":1,"allow":["host"]}"#, "allow[0]"),
        (r#"{"schema":1,"deny":["10.0.0.0/8:0"]}"#, "deny[0]"),
        (r#"{"schema":1,"publish":["80"]}"#, "publish[0]"),
        (r#"{"schema":1,"max_flows":1}"#, "max_flows"),
        (r#"{"schema":1,"memory_mib":0}"#, "memory_mib"),
        (r#"{"schema":1,"udp_idle":0}"#, "udp_idle"),
        (r#"{"schema":1,"log_fd":"x"}"#, "log_fd"),
        (r#"{"schema":1,"confine":true}"#, "confine"),
    ] {
        assert_eq!(UsernetConfig::from_json(text.as_bytes()).unwrap_err().field, field, "{text}");
    }
}

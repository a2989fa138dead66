use super::names::Naming;
use super::*;
use crate::addressee::Claim;
use crate::dns::Answer;

const NOW: Duration = Duration::from_secs(1000);

fn policy(allow: &[&str], deny: &[&str], default: Verdict) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let mut policy = Policy::new(&UsernetConfig {
        allow: rules(allow),
        deny: rules(deny),
        default,
        ..UsernetConfig::default()
    });
    policy.set_own(["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]);
    policy
}

#[test]
fn what_is_no_hosts_business_is_refused_by_default() {
    let policy = policy(&["*", "0.0.0.0/0", "::/0"], &[], Verdict::Allow);
    for (to, reason) in [
        ("10.0.2.2:80", Reason::Host),
        ("[fd4e:656c:6c79::2]:80", Reason::Host),
        ("10.0.2.9:80", Reason::Nobody),
        ("203.0.113.7:80", Reason::OwnAddress),
        ("[2001:db8::7]:80", Reason::OwnAddress),
        ("[64:ff9b::203.0.113.7]:80", Reason::OwnAddress),
        ("[2002:cb00:7107::1]:80", Reason::OwnAddress),
        ("127.0.0.1:80", Reason::Never),
        ("127.9.9.9:80", Reason::Never),
        ("0.0.0.0:80", Reason::Never),
        ("255.255.255.255:80", Reason::Never),
        ("240.0.0.1:80", Reason::Never),
        ("224.0.0.251:5353", Reason::Never),
        ("[::]:80", Reason::Never),
        ("[::1]:80", Reason::Never),
        ("[::ffff:127.0.0.1]:80", Reason::Never),
        ("[::ffff:8.8.8.8]:80", Reason::Never),
        ("[::8.8.8.8]:80", Reason::Never),
        ("[64:ff9b::127.0.0.1]:80", Reason::Never),
        ("[ff02::fb]:5353", Reason::Never),
        ("169.254.1.1:80", Reason::Special),
        ("169.254.169.254:80", Reason::Special),
        ("168.63.129.16:80", Reason::Special),
        ("[fe80::1]:80", Reason::Special),
        ("[fd00:ec2::254]:80", Reason::Special),
        ("[fd00:ec2::23]:80", Reason::Special),
        ("[fd20:ce::254]:80", Reason::Special),
        ("[fd00:c1::a9fe:a9fe]:80", Reason::Special),
        ("[fd00:42::42]:80", Reason::Special),
        ("[64:ff9b::169.254.169.254]:80", Reason::Special),
        ("[64:ff9b::100.100.100.200]:80", Reason::Special),
        // Wherever the translator of a site has the address.
        ("[64:ff9b:1::127.0.0.1]:80", Reason::Special),
        ("[64:ff9b:1:7f00:0:100::]:80", Reason::Special),
        ("[64:ff9b:1:fffe::8.8.8.8]:80", Reason::Special),
    ] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            assert_eq!(policy.decide(NOW, protocol, to.parse().unwrap()), Err(reason), "{to}");
        }
    }
    for to in ["8.8.8.8:53", "192.168.1.1:80", "[2606::1]:443", "[64:ff9b::8.8.8.8]:1"] {
        let to = to.parse().unwrap();
        assert_eq!(policy.decide(NOW, Protocol::Tcp, to).map(|passage| passage.to), Ok(to));
    }
}

#[test]
fn rules_open_what_they_name_and_nothing_else() {
    let allow = [
        "host:8080/tcp",
        "169.254.169.254:80",
        "1.2.3.0/24:443",
        "host:53",
        "[64:ff9b:1::/48]:443",
        "[64::/16]:80",
    ];
    let policy = policy(&allow, &["1.2.3.9", "host:54"], Verdict::Deny);
    let decide =
        |protocol, to: &str| policy.decide(NOW, protocol, to.parse().unwrap()).map(|passage| passage.to);
    let yes = |text: &str| Ok(text.parse().unwrap());
    assert_eq!(decide(Protocol::Tcp, "10.0.2.2:8080"), yes("127.0.0.1:8080"));
    assert_eq!(decide(Protocol::Tcp, "[fd4e:656c:6c79::2]:8080"), yes("[::1]:8080"));
    assert_eq!(decide(Protocol::Udp, "10.0.2.2:8080"), Err(Reason::Host));
    assert_eq!(decide(Protocol::Udp, "10.0.2.2:53"), yes("127.0.0.1:53"));
    assert_eq!(decide(Protocol::Icmp, "10.0.2.2:0"), Err(Reason::Host));
    assert_eq!(decide(Protocol::Tcp, "169.254.169.254:80"), yes("169.254.169.254:80"));
    assert_eq!(decide(Protocol::Tcp, "169.254.169.254:81"), Err(Reason::Special));
    assert_eq!(decide(Protocol::Tcp, "[64:ff9b:1::1]:443"), yes("[64:ff9b:1::1]:443"));
    assert_eq!(
        decide(Protocol::Tcp, "[64:ff9b:1::1]:80"),
        Err(Reason::Special),
        "a wider rule does not mean it"
    );
    assert_eq!(decide(Protocol::Tcp, "1.2.3.4:443"), yes("1.2.3.4:443"));
    assert_eq!(decide(Protocol::Tcp, "1.2.3.9:443"), Err(Reason::Rule(0)));
    assert_eq!(decide(Protocol::Tcp, "1.2.3.4:80"), Err(Reason::Default));
    assert_eq!(decide(Protocol::Icmp, "1.2.3.4:0"), Err(Reason::Default));
}

/// A guest was answered so.
fn answered(policy: &mut Policy, chain: &[&str], addresses: &[&str]) -> bool {
    let answer = Answer {
        chain: chain.iter().map(|&name| name.to_owned()).collect(),
        addresses: addresses.iter().map(|ip| (ip.parse().unwrap(), 300)).collect(),
    };
    policy.answered(NOW, &answer).is_ok()
}

#[test]
fn a_name_lets_its_addresses_out_and_no_others() {
    let allow = ["example.org:443", "*.example.org:80-443/tcp", "q.example:443/udp", "p.example"];
    let mut policy = policy(&allow, &[], Verdict::Deny);
    let far = ["198.51.100.1", "2001:db8::99"];
    for ip in far {
        let to = SocketAddr::new(ip.parse().unwrap(), 443);
        assert_eq!(policy.decide(NOW, Protocol::Tcp, to), Err(Reason::Default), "dialled directly");
    }
    assert!(answered(&mut policy, &["example.org", "edge.cdn.example"], &far));
    assert!(answered(&mut policy, &["www.example.org"], &["198.51.100.2"]));
    assert!(answered(&mut policy, &["q.example"], &["198.51.100.3"]));
    assert!(answered(
        &mut policy,
        &["p.example"],
        &["198.51.100.4", "127.0.0.1", "169.254.169.254", "203.0.113.7"]
    ));
    let decide = |now, protocol, to: &str| policy.decide(now, protocol, to.parse().unwrap());
    let must = |speaks| Some(Check { speaks, must: true });
    for (protocol, to, by, check) in [
        (Protocol::Tcp, "198.51.100.1:443", 0, must(Speaks::Tls)),
        (Protocol::Tcp, "[2001:db8::99]:443", 0, must(Speaks::Tls)),
        (Protocol::Tcp, "198.51.100.2:80", 1, must(Speaks::Http)),
        (Protocol::Tcp, "198.51.100.2:100", 1, None),
        (Protocol::Udp, "198.51.100.3:443", 2, None),
        (Protocol::Tcp, "198.51.100.4:22", 3, None),
        (Protocol::Icmp, "198.51.100.4:0", 3, None),
        (Protocol::Udp, "198.51.100.4:53", 3, None),
    ] {
        let to = to.parse().unwrap();
        assert_eq!(
            policy.decide(NOW, protocol, to),
            Ok(Passage { to, by: Some(by), check }),
            "{protocol} {to}"
        );
    }
    for (protocol, to, reason) in [
        (Protocol::Tcp, "198.51.100.1:80", Reason::Default),
        (Protocol::Udp, "198.51.100.1:443", Reason::Default),
        (Protocol::Icmp, "198.51.100.1:0", Reason::Default),
        (Protocol::Udp, "198.51.100.2:80", Reason::Default),
        (Protocol::Udp, "198.51.100.4:443", Reason::Default),
        (Protocol::Tcp, "198.51.100.5:443", Reason::Default),
        // No name opens what an address must be named for.
        (Protocol::Tcp, "127.0.0.1:22", Reason::Never),
        (Protocol::Tcp, "169.254.169.254:80", Reason::Special),
        (Protocol::Tcp, "203.0.113.7:80", Reason::OwnAddress),
    ] {
        assert_eq!(decide(NOW, protocol, to), Err(reason), "{protocol} {to}");
    }
    let later = NOW + Duration::from_secs(331);
    assert_eq!(decide(later, Protocol::Tcp, "198.51.100.1:443"), Err(Reason::Default));
}

#[test]
fn a_denied_name_has_no_answer_and_denies_the_addresses_it_led_to() {
    let mut policy = policy(&[], &["ads.example", "*.ads.example", "smtp.example:25"], Verdict::Allow);
    for (name, refused) in
        [("ads.example", true), ("x.ads.example", true), ("smtp.example", false), ("example", false)]
    {
        assert_eq!(matches!(policy.name(name), Naming::Refused(_)), refused, "{name}");
    }
    assert!(answered(&mut policy, &["smtp.example"], &["198.51.100.1"]));
    assert!(!answered(
        &mut policy,
        &["mine.example", "t.ads.example"],
        &["198.51.100.2", "64:ff9b::c633:6403"]
    ));
    let decide =
        |to: &str| policy.decide(NOW, Protocol::Tcp, to.parse().unwrap()).map(|passage| passage.check);
    assert_eq!(decide("198.51.100.1:25"), Err(Reason::Rule(2)));
    assert_eq!(decide("198.51.100.1:26"), Ok(None));
    assert_eq!(decide("198.51.100.2:26"), Err(Reason::Rule(1)));
    let denies = |speaks| Ok(Some(Check { speaks, must: false }));
    assert_eq!(decide("198.51.100.9:443"), denies(Speaks::Tls));
    assert_eq!(decide("198.51.100.9:80"), denies(Speaks::Http));
}

#[test]
fn what_is_denied_by_default_is_so_for_names() {
    for (allow, default, name, refused) in [
        (&["example.org"][..], Verdict::Deny, "example.org", false),
        (&["example.org"], Verdict::Deny, "www.example.org", true),
        (&["example.org:443/tcp"], Verdict::Deny, "example.org", false),
        (&["10.0.0.0/8"], Verdict::Deny, "example.org", true),
        (&["*:443"], Verdict::Deny, "example.org", false),
        (&["host:80"], Verdict::Deny, "example.org", true),
        (&[], Verdict::Deny, "example.org", true),
        (&[], Verdict::Allow, "example.org", false),
    ] {
        let policy = policy(allow, &[], default);
        assert_eq!(matches!(policy.name(name), Naming::Refused(_)), refused, "{allow:?} {name}");
    }
}

#[test]
fn a_stream_goes_to_whom_its_first_bytes_name() {
    let policy = policy(&["example.org:443", "b.example"], &["bad.example", "*.b.example"], Verdict::Deny);
    let check = |must| Check { speaks: Speaks::Tls, must };
    let named = |name: &str| Claim::Name(name.to_owned());
    for (must, claim, port, passes) in [
        (true, named("example.org"), 443, Some(true)),
        (true, named("b.example"), 443, Some(true)),
        (true, named("b.example"), 80, Some(true)),
        (true, named("example.org"), 80, Some(false)),
        (true, named("other.example"), 443, Some(false)),
        (true, named("x.b.example"), 443, Some(false)),
        (true, Claim::None("x"), 443, Some(false)),
        (true, Claim::More, 443, None),
        (false, named("other.example"), 443, Some(true)),
        (false, named("bad.example"), 443, Some(false)),
        (false, Claim::None("x"), 443, Some(true)),
        (false, Claim::More, 443, None),
    ] {
        assert_eq!(policy.passes(check(must), &claim, port), passes, "{must} {claim:?} {port}");
    }
}

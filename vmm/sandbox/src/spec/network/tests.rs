use super::*;

fn parsed(text: &str) -> Network {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn networks_are_spelled_as_flags_have_them() {
    assert_eq!(parsed("none"), Network::None);
    assert_eq!(parsed("user"), Network::User(Box::default()));
    let Network::User(user) = parsed("user,mtu=65520") else { panic!("user") };
    let config = user.config("seed");
    assert_eq!((config.mtu, config.default), (65_520, Verdict::Allow));
    assert_eq!(config.guest_mac.unwrap().0, MacAddress::from_seed("seed").bytes());
    let Network::User(user) = parsed("user,default=deny") else { panic!("user") };
    assert_eq!(user.config("seed").default, Verdict::Deny);
    assert!(parsed("tap=t,dns=10.0.0.1").configures_guest() && !parsed("tap=t,mtu=1400").configures_guest());
    let without = parsed("tap=t,vhost=off").device("seed", None).map(|device| device.link);
    assert!(matches!(without, Some(NetworkLink::Tap(TapLink { no_vhost: true, .. }))), "{without:?}");
    let text = "tap=tap0,ip=10.1.0.2/24,ip=fd01::2/64,gw=10.1.0.1,gw=fd01::1,dns=10.1.0.1,search=lan,mtu=9000,\
                mac=52:54:00:12:34:56";
    let tap = parsed(text);
    let guest = tap.guest("seed").unwrap();
    assert_eq!(
        guest.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.0.2/24", "fd01::2/64"]
    );
    assert_eq!(
        (guest.gateways.len(), guest.mtu.get(), guest.mac.to_string().as_str()),
        (2, 9000, "52:54:00:12:34:56")
    );
    let device = tap.device("seed", None).unwrap();
    assert_eq!((device.mac, device.mtu.get()), (guest.mac, 9000));
    let unix = parsed("unix=/run/passt.sock");
    assert_eq!(unix.device("a", None).unwrap().mac, unix.guest("a").unwrap().mac);
    assert_ne!(unix.device("a", None).unwrap().mac, unix.device("b", None).unwrap().mac);
    let peer = parsed("vhost-user=/run/ovs.sock,mtu=9000,ip=10.3.0.2/24");
    let device = peer.device("a", None).unwrap();
    assert_eq!((device.mtu.get(), peer.word()), (9000, "vhost-user"));
    assert_eq!(device.link, NetworkLink::VhostUser(FileSource::Path("/run/ovs.sock".into())));
    assert!(peer.configures_guest());
    assert!(Network::None.device("a", None).is_none() && Network::None.guest("a").is_none());
}

#[test]
fn a_user_network_has_the_addresses_that_are_wanted() {
    let addresses = |text: &str| {
        let config = match parsed(text) {
            Network::User(user) => user.config("seed"),
            other => panic!("{other}"),
        };
        assert_eq!(config.check(), Ok(()), "{text}");
        let (four, six) =
            ((config.gateway4, config.dns4, config.guest4), (config.gateway6, config.dns6, config.guest6));
        format!(
            "{} {} {} {} {} {} {} {}",
            config.prefix4, four.0, four.1, four.2, config.prefix6, six.0, six.1, six.2
        )
    };
    const FOUR: &str = "10.0.2.0/24 10.0.2.2 10.0.2.3 10.0.2.15";
    const SIX: &str = "fd4e:656c:6c79::/64 fd4e:656c:6c79::2 fd4e:656c:6c79::3 fd4e:656c:6c79::15";
    for (text, four, six) in [
        ("user", FOUR, SIX),
        ("user,prefix=192.168.77.0/24", "192.168.77.0/24 192.168.77.2 192.168.77.3 192.168.77.15", SIX),
        ("user,prefix=10.0.0.0/8", "10.0.0.0/8 10.0.0.2 10.0.0.3 10.0.0.15", SIX),
        ("user,prefix=10.1.1.8/29", "10.1.1.8/29 10.1.1.10 10.1.1.11 10.1.1.12", SIX),
        ("user,prefix=10.1.1.16/28", "10.1.1.16/28 10.1.1.18 10.1.1.19 10.1.1.20", SIX),
        ("user,prefix=10.1.1.32/27", "10.1.1.32/27 10.1.1.34 10.1.1.35 10.1.1.47", SIX),
        ("user,prefix=fd01:2:3:4::/64", FOUR, "fd01:2:3:4::/64 fd01:2:3:4::2 fd01:2:3:4::3 fd01:2:3:4::15"),
        ("user,ip=10.0.2.99,dns=10.0.2.1,gw=10.0.2.254", "10.0.2.0/24 10.0.2.254 10.0.2.1 10.0.2.99", SIX),
        (
            "user,ip=10.7.7.7,prefix=10.7.0.0/16,gw=fd07::1,prefix=fd07::/64,ip=fd07::77,dns=fd07::53",
            "10.7.0.0/16 10.7.0.2 10.7.0.3 10.7.7.7",
            "fd07::/64 fd07::1 fd07::53 fd07::77",
        ),
    ] {
        assert_eq!(addresses(text), format!("{four} {six}"), "{text}");
    }
    let Network::User(user) = parsed("user,search=lan,search=example.org") else { panic!("user") };
    assert_eq!(user.search, ["lan", "example.org"]);
    // The guest is told the same, and a record keeps it.
    let network = parsed("user,prefix=10.7.0.0/16,prefix=fd07::/64,dns=10.7.0.53");
    let guest = network.guest("seed").unwrap();
    assert_eq!(
        guest.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.7.0.15/16", "fd07::15/64"]
    );
    assert_eq!(guest.nameservers, ["10.7.0.53".parse::<IpAddr>().unwrap()]);
    assert_eq!(guest.hosts[0].0, "10.7.0.2".parse::<IpAddr>().unwrap());
    let kept = serde_json::to_value(&network).unwrap();
    assert_eq!(kept["addresses"]["prefix4"], "10.7.0.0/16");
    assert_eq!(serde_json::from_value::<Network>(kept).unwrap(), network);
    assert!(serde_json::to_value(parsed("user")).unwrap().get("addresses").is_none());
}

#[test]
fn what_is_no_network_says_what_is_wrong() {
    for (text, words) in [
        ("", "write none, user"),
        ("bridge", "docker's networks"),
        ("host", "docker's networks"),
        ("tap", "write none, user"),
        ("tap=", "not the name of an interface"),
        ("tap=a/b", "not the name of an interface"),
        ("unix=", "write none, user"),
        ("vhost-user=", "write none, user"),
        ("vhost-user=/s,vhost=off", "no option \"vhost\""),
        ("none,mtu=1500", "no network has options"),
        ("user=x", "write none, user"),
        ("container:web", "--in SANDBOX"),
        ("user,ip=10.0.2.9/24", "an IPv4 or IPv6 address without its prefix is needed"),
        ("user,ip=10.0.3.9", "ip: 10.0.3.9 is no host of 10.0.2.0/24"),
        ("user,ip=10.0.2.255", "ip: 10.0.2.255 is no host of 10.0.2.0/24"),
        ("user,ip=fd00::1", "ip: fd00::1 is no host of fd4e:656c:6c79::/64"),
        ("user,dns=10.0.2.2", "dns: 10.0.2.2 is taken by another"),
        ("user,gw=10.0.2.4,gw=10.0.2.5", "gw=10.0.2.5: there is one of this family already"),
        ("user,dns=resolver", "dns=resolver: an IPv4 or IPv6 address"),
        ("user,prefix=10.9.0.1/24", "is no network: its first address is 10.9.0.0"),
        ("user,prefix=10.9.0.0/30", "prefix: 10.9.0.0/30 is not between /8 and /29"),
        ("user,prefix=10.9.0.0", "prefix: 10.9.0.0/32 is not between /8 and /29"),
        ("user,prefix=127.1.0.0/24", "prefix: 127.1.0.0/24 is no network of hosts"),
        ("user,prefix=224.1.0.0/24", "prefix: 224.1.0.0/24 is no network of hosts"),
        ("user,prefix=0.0.0.0/8", "prefix: 0.0.0.0/8 is no network of hosts"),
        ("user,prefix=250.0.0.0/8", "prefix: 250.0.0.0/8 is no network of hosts"),
        ("user,prefix=fd00::/48", "prefix: fd00::/48 is not a /64"),
        ("user,prefix=fe80::/64", "prefix: fe80::/64 is no network of hosts"),
        ("user,prefix=::/64", "prefix: ::/64 is no network of hosts"),
        ("user,prefix=10.8.0.0/24,prefix=10.9.0.0/24", "there is one of this family already"),
        ("user,mac=52:54:00:12:34:56", "belongs to the sandbox"),
        ("user,search=a b", "a domain is needed"),
        ("user,default=x", "no option \"default\""),
        ("dev,prefix=10.9.0.0/24", "takes alias=NAME and ip=ADDRESS"),
        ("tap=t,default=deny", "no option \"default\""),
        ("tap=t,vhost=on", "no option \"vhost\""),
        ("unix=/s,vhost=off", "no option \"vhost\""),
        ("tap=t,ip=10.0.0.2/8,ip=10.0.0.3/8", "an address of this family already"),
        ("user,mtu=1279", "at least 1280"),
        ("user,mtu=65521", "out of range"),
        ("tap=t,mtu=x", "a number is needed"),
        ("tap=t,ip=10.0.0.2", "is not an address with its prefix"),
        ("tap=t,ip=10.0.0.2/+8", "is not an address with its prefix"),
        ("tap=t,ip=127.0.0.1/8", "cannot be the address"),
        ("tap=t,gw=10.0.0.1,gw=10.0.0.2", "a gateway of this family already"),
        ("tap=t,dns=dns", "address is needed"),
        ("tap=t,search=a b", "a domain is needed"),
        ("tap=t,mac=01:00:00:00:00:00", "not that of one station"),
        ("tap=t,x=1", "no option \"x\""),
        ("tap=t,x", "\"x\" is no option"),
        ("Dev", "write none, user"),
        ("dev=x", "write none, user"),
        ("dev,mtu=1400", "takes alias=NAME and ip=ADDRESS"),
        ("dev,alias=A B", "is not a name"),
        ("dev,ip=10.0.0.3/24", "an IPv4 address is needed"),
        ("dev,ip=10.0.0.3,ip=10.0.0.4", "an address already"),
    ] {
        let error = text.parse::<Network>().unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_record_keeps_it_and_knows_older_ones() {
    let mut user = parsed("user,mtu=9000");
    let rules = user.user_mut().unwrap();
    rules.allow.push("host:8080/tcp".parse().unwrap());
    rules.publish.push("8080:80".parse().unwrap());
    for network in [
        Network::None,
        user,
        parsed("tap=tap0,ip=10.1.0.2/24"),
        parsed("unix=/run/p"),
        parsed("vhost-user=/run/p"),
    ] {
        let text = serde_json::to_string(&network).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), network, "{text}");
    }
    assert_eq!(serde_json::from_str::<Network>(r#"{"mode":"user"}"#).unwrap(), parsed("user"));
}

#[test]
fn the_guest_of_a_user_network_knows_its_host() {
    let guest = parsed("user").guest("x").unwrap();
    assert_eq!(guest.addresses[0].to_string(), "10.0.2.15/24");
    assert_eq!(guest.hosts, [("10.0.2.2".parse().unwrap(), "host.internal".to_owned())]);
    assert_eq!(guest.nameservers, ["10.0.2.3".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_machine_on_a_network_has_the_addresses_that_it_was_given() {
    let mut network = parsed("dev,alias=db,alias=store,alias=db,ip=10.89.0.7");
    assert_eq!((network.to_string().as_str(), network.word()), ("dev", "user"));
    let user = network.user_mut().unwrap();
    let member = user.member.as_mut().unwrap();
    assert_eq!(member.aliases, ["db", "store"]);
    assert_eq!(member.wanted, Some("10.89.0.7".parse().unwrap()));
    let prefixes = ("10.89.0.0/24".parse().unwrap(), "fd12::/64".parse().unwrap());
    member.place = Some(Place::new("id".into(), prefixes, true, 7));
    let config = user.config("seed");
    config.check().unwrap();
    assert!(config.peers && config.isolated);
    assert_eq!(
        (config.gateway4.to_string(), config.dns6.to_string()),
        ("10.89.0.1".into(), "fd12::2".into())
    );
    let guest = network.guest("seed").unwrap();
    let addresses: Vec<String> = guest.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.89.0.7/24", "fd12::7/64"]);
    let text = serde_json::to_string(&network).unwrap();
    assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), network);
}

use super::*;

fn parsed(text: &str) -> Network {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn networks_are_spelled_as_flags_have_them() {
    assert_eq!(parsed("none"), Network::None);
    assert_eq!(parsed("user"), Network::User(UserNetwork::default()));
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
    assert!(Network::None.device("a", None).is_none() && Network::None.guest("a").is_none());
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
        ("none,mtu=1500", "no network has options"),
        ("user=x", "write none, user"),
        ("container:web", "--in SANDBOX"),
        ("user,ip=10.0.0.2/24", "takes mtu and default alone"),
        ("user,default=x", "no option \"default\""),
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
    for network in [Network::None, user, parsed("tap=tap0,ip=10.1.0.2/24"), parsed("unix=/run/p")] {
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

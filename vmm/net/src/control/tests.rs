use super::*;

fn publish(text: &str) -> Publish {
    text.parse().unwrap()
}

#[test]
fn requests_are_these_words_and_are_read_again() {
    for (call, text) in [
        (Call::Add(publish("8080:80")), r#"{"id":7,"call":{"add":"127.0.0.1:8080:80/tcp"}}"#),
        (Call::Remove(publish("[::1]:53:53/udp")), r#"{"id":7,"call":{"remove":"[::1]:53:53/udp"}}"#),
        (Call::List(64), r#"{"id":7,"call":{"list":64}}"#),
    ] {
        let request = Request { id: 7, call };
        assert_eq!(String::from_utf8(request.to_bytes()).unwrap(), text);
        assert_eq!(Request::parse(text.as_bytes()), Ok(request));
    }
}

#[test]
fn answers_are_read_again_and_the_longest_one_fits() {
    let port = Port {
        publish: publish("[1111:2222:3333:4444:5555:6666:7777:8888]:65535:65535/tcp"),
        connections: u64::MAX,
        refused: u64::MAX,
    };
    let traffic =
        Traffic { allowed: u64::MAX, denied: u64::MAX, names_allowed: u64::MAX, names_denied: u64::MAX };
    let page = Page { ports: vec![port; PAGE], next: Some(64), traffic };
    for outcome in [Outcome::Done, Outcome::Refused("it is not there".to_owned()), Outcome::Page(page)] {
        let answer = Answer { id: u64::MAX, outcome };
        let bytes = answer.to_bytes();
        assert!(bytes.len() <= MAX_MESSAGE, "{}", bytes.len());
        assert_eq!(Answer::parse(&bytes), Ok(answer));
    }
    let long = Answer { id: 1, outcome: Outcome::Refused("\u{1}é".repeat(MAX_MESSAGE)) };
    let bytes = long.to_bytes();
    assert!(bytes.len() <= MAX_MESSAGE);
    let Outcome::Refused(why) = Answer::parse(&bytes).unwrap().outcome else { panic!("refused") };
    assert!(why.starts_with("\u{1}é"));
}

#[test]
fn what_is_no_message_is_refused() {
    let long = format!(r#"{{"id":1,"call":{{"list":0}}{}}}"#, " ".repeat(MAX_MESSAGE));
    for text in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"id":1}"#,
        r#"{"id":-1,"call":{"list":0}}"#,
        r#"{"id":1,"call":{"list":-1}}"#,
        r#"{"id":1,"call":{"list":1025}}"#,
        r#"{"id":1,"call":{"list":0,"add":"80:80"}}"#,
        r#"{"id":1,"call":{"add":"0:80"}}"#,
        r#"{"id":1,"call":{"remove":"0:80"}}"#,
        r#"{"id":1,"call":{"add":"80"}}"#,
        r#"{"id":1,"call":{"open":"80:80"}}"#,
        r#"{"id":1,"call":{"list":0},"more":1}"#,
        r#"{"id":1,"call":{"list":0}} x"#,
        &"[".repeat(MAX_MESSAGE),
        &long,
    ] {
        assert!(Request::parse(text.as_bytes()).is_err(), "{text}");
    }
    let port = r#"{"publish":"1:1","connections":0,"refused":0}"#;
    let many = vec![port; PAGE + 1].join(",");
    for text in [
        "",
        r#"{"id":1,"outcome":"undone"}"#,
        r#"{"id":1,"outcome":{"refused":1}}"#,
        r#"{"id":1,"outcome":{"page":{}}}"#,
        r#"{"id":1,"outcome":{"page":{"ports":[],"next":1025,"traffic":{}}}}"#,
        &format!(r#"{{"id":1,"outcome":{{"page":{{"ports":[{many}],"next":null,"traffic":{{}}}}}}}}"#),
    ] {
        assert!(Answer::parse(text.as_bytes()).is_err(), "{text}");
    }
}

/// A generator of numbers that are the same each time (xorshift).
fn numbers(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    }
}

#[test]
fn damaged_messages_are_refused_or_mean_what_they_say() {
    let mut next = numbers(0x6e65_6c6c_7970_6f72);
    let requests = [Call::Add(publish("8080:80")), Call::Remove(publish("[::1]:9:9/udp")), Call::List(3)];
    let page = Page {
        ports: vec![Port { publish: publish("1:1"), connections: 3, refused: 0 }],
        next: None,
        traffic: Traffic::default(),
    };
    let outcomes = [Outcome::Done, Outcome::Refused("why".to_owned()), Outcome::Page(page)];
    let mut messages: Vec<Vec<u8>> =
        requests.into_iter().map(|call| Request { id: 1, call }.to_bytes()).collect();
    messages.extend(outcomes.into_iter().map(|outcome| Answer { id: 1, outcome }.to_bytes()));
    for _ in 0..20_000 {
        let mut message = messages[usize::try_from(next() % 6).unwrap()].clone();
        for _ in 0..=next() % 3 {
            let at = usize::try_from(next()).unwrap() % message.len();
            let [byte, how, ..] = next().to_le_bytes();
            match how % 3 {
                0 => message[at] = byte,
                1 => message.insert(at, byte),
                _ if message.len() > 1 => drop(message.remove(at)),
                _ => {}
            }
        }
        // What is taken for a message is one that can be said.
        if let Ok(request) = Request::parse(&message) {
            assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
        }
        if let Ok(answer) = Answer::parse(&message) {
            assert_eq!(Answer::parse(&answer.to_bytes()), Ok(answer));
        }
    }
}

use std::os::unix::fs::PermissionsExt;

use std::io::Write as _;

use nelly_net::config::SecretsConfig;
use nelly_net::control::{Call, MAX_MESSAGE, Request};
use nelly_net::holder::HolderError;
use rustix::net::RecvFlags;

use super::*;
use crate::spec::network::UserNetwork;

/// A program in the place of the network's: a script of the shell.
fn started(directory: &Path, script: &str) -> Usernet {
    let program = directory.join("program");
    std::fs::write(&program, format!("#!/bin/sh\ncat <&1 >/dev/null\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    Usernet::start(&program, &UsernetConfig::default(), None, None, None).unwrap().0
}

/// A network that serves, whose process does nothing more by itself. Whoever has the other end
/// plays what it is asked.
pub(crate) fn played(directory: &Path, then: &str, patience: Duration) -> (Usernet, OwnedFd) {
    let serves = r#"echo '{"published":["127.0.0.1:1:80/tcp"]}'; exec >/dev/null"#;
    let mut network = started(directory, &format!("{serves}; {then}"));
    network.wait_ready().unwrap();
    let (holder, other) = Holder::pair().unwrap();
    network.holder = holder.with_patience(patience);
    (network, other)
}

fn ended(network: &Usernet) -> String {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(reason) = network.reason() {
            return reason;
        }
        assert!(std::time::Instant::now() < end, "the program does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_says_when_it_is_ready_and_why_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let serves = r#"echo '{"published":["127.0.0.1:1:2/tcp"],"confinement":["seccomp"]}'; exec >/dev/null"#;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (script, reason) in [
        (
            format!("{serves}; echo 'nelly-usernet: ended: the system call ptrace (101)' >&2; exit 159"),
            "ended: the system call ptrace (101)",
        ),
        (format!("{serves}; exit 125"), "exit status: 125"),
        (format!("{serves}; kill -9 $$"), "signal: 9 (SIGKILL)"),
    ] {
        let network = started(directory.path(), &script);
        network.wait_ready().unwrap();
        assert_eq!(
            (network.published(), network.confinement()),
            (vec!["127.0.0.1:1:2/tcp".to_owned()], vec!["seccomp".to_owned()])
        );
        assert_eq!(ended(&network), reason);
        assert_eq!(ended(&network), reason, "another reason the second time");
        let network = started(directory.path(), &script);
        runtime.block_on(network.ready()).unwrap();
        runtime.block_on(network.ready()).unwrap();
        assert_eq!((network.published().len(), ended(&network).as_str()), (1, reason));
    }
    for (script, why) in [
        ("echo 'nelly-usernet: cannot publish 80: taken' >&2; exit 125", "cannot publish 80: taken"),
        ("exit 1", "it ended before it said why"),
    ] {
        let network = started(directory.path(), script);
        assert!(network.wait_ready().unwrap_err().to_string().ends_with(why));
        let network = started(directory.path(), script);
        assert!(runtime.block_on(network.ready()).unwrap_err().to_string().ends_with(why));
    }
    // One that goes on has no reason to tell.
    let network = started(directory.path(), &format!("{serves}; read nothing; kill -STOP $$"));
    network.wait_ready().unwrap();
    assert_eq!(network.reason(), None);
}

/// The same in the place of the program that has the secrets.
fn with_secrets(directory: &Path, script: &str) -> Result<Secrets, NetworkError> {
    let program = secrets::program(&directory.join("nelly-usernet"));
    std::fs::write(&program, format!("#!/bin/sh\ncat >/dev/null\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let config = SecretsConfig {
        schema: nelly_net::config::SCHEMA,
        secrets: Vec::new(),
        authorities: Vec::new(),
        confine: nelly_net::config::Confine::On,
    };
    Secrets::start(&program, &config, None).map(|(secrets, _)| secrets)
}

#[test]
fn the_program_with_the_secrets_says_why_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let serves = r#"echo '{"authority":"A","confinement":["seccomp"]}' >&0; exec </dev/null"#;
    for (script, reason) in [
        (
            "echo 'nelly-secrets: ended: the system call ptrace (101)' >&2; exit 159",
            "ended: the system call ptrace (101)",
        ),
        ("echo first >&2; echo last >&2; exit 1", "last"),
        ("exit 125", "exit status: 125"),
        ("kill -9 $$", "signal: 9 (SIGKILL)"),
        // Nobody listens to so much, and it goes on all the same.
        ("yes words | head -c 4000000 >&2; exit 3", "w"),
    ] {
        let secrets = with_secrets(directory.path(), &format!("{serves}; {script}")).unwrap();
        assert_eq!(secrets.confinement(), ["seccomp"]);
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while secrets.process().is_some() {
            assert!(std::time::Instant::now() < end, "{script} does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let said = secrets.reason().unwrap();
        assert!(said == reason || said.starts_with('w') && reason == "w", "{script}: {said}");
        assert_eq!(secrets.reason(), Some(said), "another reason the second time");
    }
    for (script, why) in [
        ("echo 'nelly-secrets: no authorities' >&2; exit 2", "no authorities"),
        ("exit 1", "it ended before it said why"),
    ] {
        let refused = with_secrets(directory.path(), script).map(drop).unwrap_err();
        assert!(refused.to_string().ends_with(why), "{refused}");
    }
    let secrets = with_secrets(directory.path(), &format!("{serves}; kill -STOP $$")).unwrap();
    assert_eq!(secrets.reason(), None);
}

#[test]
fn its_end_is_heard_at_once_and_collected() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let serves = r#"echo '{"published":[]}'; exec >/dev/null"#;
    for (script, reason) in [
        (
            "echo 'first words' >&2; echo 'nelly-usernet: ended: the system call ptrace (101)' >&2; exit 159",
            "ended: the system call ptrace (101)",
        ),
        ("exit 125", "exit status: 125"),
        ("kill -9 $$", "signal: 9 (SIGKILL)"),
        ("exit 0", "exit status: 0"),
        // It only seems to have ended.
        ("exec 2>/dev/null <&- ; kill -STOP $$", "signal: 9 (SIGKILL)"),
    ] {
        let network = started(directory.path(), &format!("{serves}; {script}"));
        runtime.block_on(async {
            network.ready().await.unwrap();
            let words = network.silence().unwrap().await;
            network.collect(&words).await;
            assert_eq!(network.reason().as_deref(), Some(reason), "{script}");
            // Twice is no harm, whoever has its number now.
            network.collect("").await;
            assert_eq!(network.reason().as_deref(), Some(reason), "{script}");
        });
        assert!(!Path::new(&format!("/proc/{}", network.process())).exists(), "a zombie: {script}");
    }
}

#[test]
fn a_port_that_cannot_be_is_refused_before_the_network_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    // It takes no descriptor, so nobody answers.
    let script =
        r#"echo '{"published":["127.0.0.1:1:80/tcp"]}'; exec >/dev/null; read nothing; kill -STOP $$"#;
    let network = started(directory.path(), script);
    network.wait_ready().unwrap();
    let port = |text: &str| text.parse().unwrap();
    assert!(matches!(network.add_port(port("1:81")), Err(PortError::Equal(_))));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let number = taken.local_addr().unwrap().port();
    let error = network.add_port(port(&format!("{number}:80"))).unwrap_err().to_string();
    let by = format!("port {number} of 127.0.0.1 is taken by process {}", std::process::id());
    assert!(error.contains(&by), "{error}");
    for (text, words) in [
        ("1:81", "127.0.0.1:1:81/tcp is not published: this port leads to 80"),
        ("1:80/udp", "127.0.0.1:1:80/udp is not published"),
        ("0:80", "not 0"),
    ] {
        let error = network.remove_port(port(text)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    // What the network does not take is not published, and its port is free again.
    let error = network.add_port(port("0:80")).unwrap_err();
    assert!(matches!(error, PortError::Holder(_)), "{error}");
    assert_eq!(network.published(), ["127.0.0.1:1:80/tcp"]);
}

#[test]
fn what_is_asked_too_late_is_undone() {
    let directory = tempfile::tempdir().unwrap();
    let (network, other) = played(directory.path(), "read nothing; kill -STOP $$", Duration::from_millis(20));
    let error = network.add_port("0:80".parse().unwrap()).unwrap_err();
    assert!(matches!(error, PortError::Holder(HolderError::Silent(_))), "{error}");
    // It answers later: after what it did so late it is told to undo that.
    let mut calls = Vec::new();
    let mut buffer = vec![0; MAX_MESSAGE];
    while let Ok((len @ 1.., _)) = rustix::net::recv(&other, &mut *buffer, RecvFlags::DONTWAIT) {
        calls.push(Request::parse(&buffer[..len]).unwrap().call);
    }
    let [Call::Add(added), Call::Remove(removed)] = calls[..] else { panic!("{calls:?}") };
    assert_eq!((added, added.guest), (removed, 80));
    assert_eq!(network.published(), ["127.0.0.1:1:80/tcp"]);
}

#[test]
fn a_log_is_made_for_its_owner_and_added_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let network = |path: &Path| UserNetwork { log: Some(path.to_owned()), ..UserNetwork::default() };
    assert!(open_log(&UserNetwork::default()).unwrap().is_none());
    for _ in 0..2 {
        open_log(&network(&path)).unwrap().unwrap().write_all(b"line\n").unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"line\nline\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for path in [directory.path(), Path::new("/nonexistent/log")] {
        let error = open_log(&network(path)).unwrap_err().to_string();
        assert!(error.contains("--net-log") && error.contains(&path.display().to_string()), "{error}");
    }
}

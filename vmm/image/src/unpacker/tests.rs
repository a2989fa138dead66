use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::progress::Silent;

fn order() -> Order {
    Order {
        reference: "oci:/nowhere".parse().unwrap(),
        cache: "/nowhere/cache".into(),
        local: None,
        builtin: None,
        limits: Limits::default(),
    }
}

/// An unpacker that is this script of a shell.
fn script(text: &str) -> (tempfile::TempDir, Unpacker) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("nelly-unpack");
    // By a name of its own, so that no other test's child has it open for writing.
    std::fs::write(path.with_extension("new"), format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path.with_extension("new"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    (place, Unpacker::at(vec!["/nowhere/nelly-unpack".into(), path]))
}

fn unpack(text: &str) -> Result<Unpacked, ImageError> {
    let (_place, unpacker) = script(text);
    unpacker.unpack(&order(), &mut Silent)
}

/// The error and its causes.
fn failure(text: &str) -> String {
    let error = unpack(text).err().expect("an error");
    assert!(!error.to_string().is_empty());
    words(&error).join(": ")
}

const DONE: &str = r#"{"Done":{"digest":"d","config":"c","cached":false}}"#;

#[test]
fn an_order_arrives_and_the_stages_are_told() {
    struct Heard(Vec<(ImageStage, u64, Option<u64>)>);
    impl Progress for Heard {
        fn update(&mut self, stage: ImageStage, done: u64, total: Option<u64>) {
            self.0.push((stage, done, total));
        }
    }
    let stage = r#"{"Stage":{"stage":{"Layer":{"number":1,"count":2}},"done":3,"total":null}}"#;
    let (place, unpacker) = script(&format!(
        "read -r line; printf %s \"$line\" > \"$(dirname \"$0\")/order\"; echo '{stage}'; echo '{DONE}'"
    ));
    let mut heard = Heard(Vec::new());
    let done = unpacker.unpack(&order(), &mut heard).unwrap();
    assert_eq!((done.digest.as_str(), done.config.as_str(), done.cached), ("d", "c", false));
    assert_eq!(heard.0, [(ImageStage::Layer { number: 1, count: 2 }, 3, None)]);
    let line = std::fs::read(place.path().join("order")).unwrap();
    assert_eq!(Order::read(&line[..]).unwrap(), order());
    assert!(Order::read(&b"{}\n"[..]).is_err() && Order::read(&b""[..]).is_err());
}

#[test]
fn an_unpacker_that_lies_or_dies_is_an_error_that_says_so() {
    // Said, and not meant.
    assert!(failure(&format!("read -r line; echo '{DONE}'; exit 3")).contains("exit status: 3"));
    assert!(failure("read -r line; exit 0").contains("before it was done"));
    let message = failure(
        "read -r line; echo '{\"Done\":7}'; printf 'thread x panicked\\033[2J\\nat y' >&2; kill -9 $$",
    );
    assert!(message.contains("signal: 9") && message.contains("thread x panicked"), "{message}");
    assert!(!message.contains('\x1b') && !message.contains('\n'), "{message:?}");
    // Without a line's end, and much of it.
    assert!(failure("read -r line; head -c 100000 /dev/zero | tr '\\0' x; exit 1").len() < 3000);
    let told = r#"{"Failed":{"code":"image_layer_unusable","words":"a layer\u001b[1m\nit is cut"}}"#;
    let error = unpack(&format!("read -r line; printf '%s\\n' '{told}'; exit 1")).err().unwrap();
    assert_eq!(error.code(), "image_layer_unusable");
    assert_eq!(words(&error), ["a layer [1m", "it is cut"]);
    let full = r#"{"Failed":{"code":"disk_full","words":"there is too little\nno space left"}}"#;
    let error = unpack(&format!("read -r line; printf '%s\\n' '{full}'; exit 1")).err().unwrap();
    assert!(
        matches!(&error, ImageError::DiskFull { .. }) && words(&error)[1] == "no space left",
        "{error:?}"
    );
    let told = r#"{"Failed":{"code":"nonsense","words":""}}"#;
    let error = unpack(&format!("echo '{told}'")).err().unwrap();
    assert_eq!((error.code(), words(&error).len()), ("image_unpacker_failed", 1));
    let missing = Unpacker::at(vec!["/nowhere/nelly-unpack".into()]).unpack(&order(), &mut Silent);
    assert!(words(&missing.err().unwrap())[1].contains("looked for /nowhere/nelly-unpack"));
}

#[test]
fn one_that_is_not_wanted_any_more_is_left_and_then_ended() {
    struct Never;
    impl Progress for Never {
        fn update(&mut self, _: ImageStage, _: u64, _: Option<u64>) {}
        fn cancelled(&mut self) -> bool {
            true
        }
    }
    // It ends when its standard input does.
    let (place, mut unpacker) = script("read -r line; cat > /dev/null; : > \"$(dirname \"$0\")/ended\"");
    // A busy machine takes longer than its users would wait.
    unpacker.grace = Duration::from_secs(120);
    let left = unpacker.unpack(&order(), &mut Never);
    assert!(matches!(left, Err(ImageError::Cancelled)));
    assert!(place.path().join("ended").exists());
    // It does not, and says nothing more either.
    let (_place, unpacker) =
        script("trap '' HUP TERM; read -r line; exec > /dev/null 2>&1; while :; do sleep 60; done");
    assert!(unpacker.unpack(&order(), &mut Never).is_err());
    // It does not, and floods.
    let (_place, unpacker) = script("trap '' HUP TERM; exec yes");
    assert!(matches!(unpacker.unpack(&order(), &mut Never), Err(ImageError::Cancelled)));
}

//! Images with names: what a user of docker does with them.

use std::path::Path;
use std::process::Command;

use nelly_tests::{asset, kernel, run};
use serde_json::Value;

use super::{Home, LIMIT};

/// An archive of the built-in image, which gives it the name `app:1`.
pub(super) fn archive(home: &Home) -> Vec<u8> {
    let layout = home.path().join("layout");
    let copied = Command::new("cp").arg("-r").arg(asset("busybox")).arg(&layout).status().expect("cp");
    assert!(copied.success());
    let index = layout.join("index.json");
    let text = std::fs::read_to_string(&index).expect("the index");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    value["manifests"][0]["annotations"] =
        serde_json::json!({ "org.opencontainers.image.ref.name": "app:1" });
    std::fs::write(&index, value.to_string()).expect("the index");
    let done = run(Command::new("tar").arg("-C").arg(&layout).args(["-cf", "-", "."]), b"", LIMIT);
    done.expect(0);
    done.stdout
}

#[test]
fn an_image_is_loaded_run_saved_and_removed() {
    let home = Home::new();
    let json = |words: &[&str]| -> Value {
        let done = home.nelly(words);
        done.expect(0);
        serde_json::from_str(&done.out()).expect("JSON")
    };
    assert_eq!(home.feed(&["image", "load"], &archive(&home)).expect(0).out(), "loaded app:1\n");
    home.nelly(&["image", "tag", "app:1", "example.org/team/app"]).expect(0);
    let table = home.nelly(&["image", "ls"]).expect(0).out();
    assert!(
        table.contains("app                    1 ") && table.contains("example.org/team/app   latest"),
        "{table}"
    );
    let id = home.nelly(&["image", "ls", "-q"]).expect(0).out();
    assert_eq!(id.trim_end().len(), 12, "one image of two names: {id}");
    assert_eq!(
        json(&["image", "ls", "--filter", "reference=example*", "--json"])[0]["name"],
        "example.org/team/app:latest"
    );

    assert_eq!(home.nelly(&["run", "--rm", "app:1", "echo", "hello"]).expect(0).out(), "hello\n");
    let shown = &json(&["image", "inspect", "--json", id.trim_end()])[0];
    assert_eq!((&shown["cached"], &shown["schema"]), (&Value::from(true), &Value::from(1)));
    assert!(
        shown["runs_with"]["kernel"]
            .as_str()
            .is_some_and(|path| Path::new(path).ends_with(kernel().file_name().unwrap())),
        "{shown}"
    );
    let version: Value = json(&["version", "--json"]);
    assert!(shown["runs_with"]["kernel_source"].as_str().is_some_and(|it| it.contains("6.")), "{shown}");
    assert_eq!(shown["runs_with"]["agent_version"], version["version"], "{shown}");
    assert_eq!(shown["runs_with"]["build_id"], version["assets_build_id"], "{shown}");
    assert_eq!(
        json(&["image", "history", "--json", "app:1"])[0]["stored_bytes"],
        shown["layers"][0]["stored_bytes"]
    );

    let saved = home.nelly(&["image", "save", "example.org/team/app"]);
    saved.expect(0);
    let refused = home.nelly(&["image", "rm", id.trim_end()]);
    assert!(refused.expect(1).err().contains("several names"), "{}", refused.err());
    let removed = home.nelly(&["image", "rm", "app:1", "example.org/team/app"]).expect(0).out();
    assert!(removed.contains("untagged app:1\n") && removed.contains("removed sha256:"), "{removed}");
    assert_eq!(json(&["image", "ls", "--json"]), Value::Array(Vec::new()));
    assert!(
        home.nelly(&["run", "--rm", "--dry-run", "app:1"])
            .expect(125)
            .err()
            .contains("not in the local store")
    );

    let loaded = home.feed(&["image", "load"], &saved.stdout);
    assert_eq!(loaded.expect(0).out(), "loaded example.org/team/app:latest\n");
    assert_eq!(home.nelly(&["image", "prune", "-a", "--json"]).expect(0).out().matches("sha256:").count(), 1);
}

#[test]
fn verbs_that_are_used_wrongly_say_so() {
    let home = Home::new();
    for (words, code, what) in [
        (&["image"][..], 2, "Usage"),
        (&["image", "rm"], 2, "IMAGE"),
        (&["image", "rm", "none"], 1, "there is no image `none`"),
        (&["image", "inspect", "none"], 1, "`none` is not in the local store"),
        (&["image", "tag", "none", "other"], 1, "there is no image `none`"),
        (&["image", "tag", "none", "Not A Name"], 2, "NAME"),
        (&["image", "save", "none"], 1, "there is no image `none`"),
        (&["image", "load"], 1, "is empty"),
        (&["image", "load", "-i", "/nonexistent/x.tar"], 1, "/nonexistent/x.tar"),
        (&["image", "ls", "--filter", "size=3"], 2, "dangling=true"),
    ] {
        let done = home.nelly(words);
        assert!(done.expect(code).err().contains(what), "{words:?}: {}", done.err());
        assert!(done.out().is_empty(), "{words:?}: {}", done.out());
    }
    home.nelly(&["image", "rm", "-f", "none"]).expect(0);
}

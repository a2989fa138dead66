//! A keeper whose guest lies: it ends with a sentence, and answers its own clients to the last.

use super::*;
use crate::agent::{Inspection, lies::Lie};
use crate::metrics::strict;

fn lying(at: &'static str, lie: Lie) -> Script {
    Script { lies: Some((at, lie)), ..Default::default() }
}

/// What is told of a lie is a sentence of bounded length.
fn sentence(text: &str, what: &str) {
    assert!(!text.is_empty() && text.len() < 3 * 4096, "{what}: {} bytes", text.len());
}

#[tokio::test]
async fn a_guest_that_lies_at_its_start_or_of_its_end_fails_its_sandbox() {
    let broken = [Lie::Length(u32::MAX), Lie::Stream(98), Lie::Kind(3), Lie::Flood];
    let table = ["CreateContainer", "StartContainer", "Wait"].map(|at| broken.map(|lie| (at, lie)));
    let more = [("CreateContainer", Lie::Refusal), ("Wait", Lie::Cut(3)), ("Wait", Lie::Garbage)];
    for (at, lie) in table.into_iter().flatten().chain(more) {
        let what = format!("{at} {lie:?}");
        let (scene, life) = Scene::new(lying(at, lie), RestartPolicy::No, GRACE);
        let ended = life.await;
        assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (125, "failed"), "{what}: {ended:?}");
        sentence(&ended.detail, &what);
        assert!(ended.detail.contains(at), "{what}: {ended:?}");
        assert_eq!(scene.statuses().last(), Some(&Status::Exited), "{what}");
        assert_eq!(scene.keeper.state().detail, ended.detail);
    }
}

#[tokio::test]
async fn a_keeper_answers_for_itself_while_its_guest_lies() {
    let spec = ExecSpec { args: vec!["cat".into()], stdin: true, ..Default::default() };
    for (at, lie) in [
        ("Exec", Lie::Refusal),
        ("Exec", Lie::Length(u32::MAX)),
        ("Stats", Lie::Stream(98)),
        ("Processes", Lie::Kind(3)),
        ("Signal", Lie::Flood),
        ("UpdateContainer", Lie::Garbage),
    ] {
        let what = format!("{at} {lie:?}");
        let (scene, life) = Scene::new(lying(at, lie), RestartPolicy::No, GRACE);
        let client = async {
            scene.status(Status::Running).await;
            served(&scene, async |connection| {
                // Before, and it is no guest that tells.
                let shown: serde_json::Value =
                    serde_json::from_str(&connection.monitor().await.unwrap()).unwrap();
                assert_eq!(shown["schema"], 1);
                let scraped = strict::parse(&connection.metrics("box").await.unwrap()).unwrap();
                assert_eq!(scraped.value("nelly_sandbox_up", &[("sandbox", "box"), ("id", "c")]), 1.0);
                let failed = match at {
                    "Exec" => connection.exec(&spec).await.map(drop),
                    "Stats" => connection.stats().await.map(drop),
                    "Processes" => connection.inspect(Inspection::Processes).await.map(drop),
                    "Signal" => connection.kill("", Signal::HUP).await,
                    _ => {
                        let memory_limit = Some(Some(8 << 20));
                        connection.update(Change { memory_limit, ..Default::default() }).await
                    }
                };
                sentence(&nelly_vmm::text::chain(&failed.unwrap_err()), &what);
                let state = connection.state().await.unwrap();
                assert_eq!(state.execs, [], "{what}");
                scene.keeper.stop(None, Some(Duration::ZERO));
                let ended = connection.wait("").await.unwrap();
                assert!([125, 137].contains(&ended.exit.code), "{what}: {ended:?}");
                assert_eq!(connection.state().await.unwrap().status, "exited", "{what}");
            })
            .await;
        };
        tokio::join!(life, client);
    }
}

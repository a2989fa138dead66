//! Health checks.

use super::*;
use crate::connect::HealthResponse;
use crate::state::record::HealthStatus;

/// A check whose times are short.
fn check(timeout_ms: u64, retries: u32) -> Option<HealthCheck> {
    Some(HealthCheck {
        command: vec!["probe".into(), "-x".into()],
        interval_ms: 1,
        timeout_ms,
        start_period_ms: 0,
        start_interval_ms: 1,
        retries,
    })
}

fn script(timeout_ms: u64, retries: u32) -> Script {
    Script { obeys: &[9, 15], health: check(timeout_ms, retries), ..Default::default() }
}

impl Scene {
    /// How many probes were started.
    fn probes(&self) -> usize {
        self.guests.execs.borrow().len()
    }

    /// The streams of the probe that runs.
    async fn probe(&self, number: usize) -> Streams {
        let mut execs = self.guests.execs.subscribe();
        execs.wait_for(|execs| execs.len() >= number).await.unwrap();
        let taken = || {
            let mut streams = self.guests.streams.lock().unwrap();
            // The first are those of the container.
            if streams.len() > 1 { streams.pop() } else { None }
        };
        loop {
            if let Some(streams) = taken() {
                return streams;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Lets the probe of this number say something and end.
    async fn end_probe(&self, number: usize, said: &[u8], code: u32) {
        let streams = self.probe(number).await;
        streams.stdout.unwrap().write_all(said).unwrap();
        self.guests.ended.send_modify(|ended| {
            ended.insert(format!("health-{number}"), code);
        });
    }

    async fn health(&self, status: HealthStatus) {
        let mut state = self.keeper.state.subscribe();
        let is = |state: &SandboxState| state.health.map(|health| health.status) == Some(status);
        state.wait_for(is).await.unwrap();
    }

    /// The statuses of health that were written, as often as they were.
    fn written_health(&self) -> Vec<HealthStatus> {
        let written = self.written.lock().unwrap();
        written.iter().filter_map(|state| state.health.map(|health| health.status)).collect()
    }
}

fn said(health: &HealthResponse) -> Vec<(Option<u32>, String)> {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    health.results.iter().map(|one| (one.code, said(&one.output))).collect()
}

#[tokio::test]
async fn probes_run_as_the_container_and_only_a_new_status_is_written() {
    let (scene, life) = Scene::new(script(60_000, 3), RestartPolicy::No, GRACE);
    let client = async {
        scene.status(Status::Running).await;
        assert_eq!(scene.keeper.state().health.unwrap().status, HealthStatus::Starting);
        served(&scene, async |connection| {
            for (number, code) in [(1, 1), (2, 0), (3, 7), (4, 7), (5, 7), (6, 0), (7, 1)] {
                scene.end_probe(number, format!("probe {number}").as_bytes(), code).await;
            }
            // One runs: so the result before was taken.
            let _running = scene.probe(8).await;
            let state = connection.state().await.unwrap();
            assert_eq!((state.health.as_str(), state.health_failures), ("healthy", 1));
            assert!(state.execs.is_empty(), "a probe is no exec of a client");
            let health = connection.health().await.unwrap();
            let expected = [(7, 3), (7, 4), (7, 5), (0, 6), (1, 7)];
            let expected = expected.map(|(code, number)| (Some(code), format!("probe {number}")));
            assert_eq!(said(&health), expected);
            assert!(health.results.iter().all(|one| one.started_unix_ns <= one.ended_unix_ns));
        })
        .await;
        scene.keeper.stop(None, None);
    };
    let (ended, ()) = tokio::join!(life, client);
    assert_eq!(ended.exit.code, 143);
    let mut written = scene.written_health();
    // A state is written for other reasons, too: of the health's own changes there is one each.
    assert_eq!(written.first(), Some(&HealthStatus::Starting));
    written.dedup();
    // The two that followed within a second came to the same.
    assert_eq!(written, [HealthStatus::Starting, HealthStatus::Healthy]);
    assert!(scene.written.lock().unwrap().len() <= 4 + 3 + 3, "a write each probe");
    assert_eq!(scene.keeper.state().health, None, "what has ended has no health");
    let asked = scene.guests.execs.borrow()[0].clone();
    let process: serde_json::Value = serde_json::from_slice(&asked.process).unwrap();
    assert_eq!(process["args"], serde_json::json!(["probe", "-x"]));
    let first = container().process;
    assert_eq!((asked.user, process["cwd"].as_str()), (first.user, Some(first.cwd.as_str())));
    assert!(!asked.stdio.stdin && !asked.stdio.terminal && asked.stdio.stdout && asked.stdio.stderr);
}

#[tokio::test]
async fn a_status_that_alternates_is_written_once_a_second_and_the_last_one_is() {
    let (scene, life) = Scene::new(script(60_000, 1), RestartPolicy::No, GRACE);
    let client = async {
        scene.status(Status::Running).await;
        let (began, mut number) = (std::time::Instant::now(), 0);
        while began.elapsed() < Duration::from_millis(1500) || number <= 20 || number % 2 == 0 {
            number += 1;
            scene.end_probe(number, b"", u32::try_from(number % 2).unwrap()).await;
        }
        let _running = scene.probe(number + 1).await;
        let (changes, seconds) = (number, usize::try_from(began.elapsed().as_secs()).unwrap());
        assert!(changes > 20, "{changes}");
        assert_eq!(scene.keeper.state().health.unwrap().status, HealthStatus::Unhealthy);
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let limit = std::time::Instant::now() + SOON;
        while scene.written_health().last() != Some(&HealthStatus::Unhealthy) {
            assert!(std::time::Instant::now() < limit, "the last status is never written");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let written = scene.written_health();
        assert_eq!(written.last(), Some(&HealthStatus::Unhealthy));
        // The first status, one at once, and one a second.
        assert!(written.len() <= 4 + seconds, "{} writes of {changes} changes", written.len());
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
}

#[tokio::test]
async fn a_probe_that_takes_too_long_is_killed_and_counts() {
    let (scene, life) = Scene::new(script(30, 2), RestartPolicy::No, GRACE);
    let client = async {
        scene.status(Status::Running).await;
        // It says much, all of which is read, and does not end.
        let mut stdout = scene.probe(1).await.stdout.unwrap();
        let writes = tokio::task::spawn_blocking(move || {
            // Its reader leaves after the kill.
            let _cut = stdout.write_all(&vec![b'x'; 1 << 20]);
            let _cut = stdout.write_all(b"last");
        });
        scene.guests.heard("health-1", 9, true).await;
        scene.guests.heard("health-2", 9, true).await;
        scene.health(HealthStatus::Unhealthy).await;
        writes.await.unwrap();
        served(&scene, async |connection| {
            let health = connection.health().await.unwrap();
            let said = said(&health);
            assert_eq!(said[0].0, None);
            assert!(said[0].1.starts_with("the probe did not end within 30ms, and was killed: xxx"));
            assert!(said[0].1.len() <= 4096, "{}", said[0].1.len());
            assert_eq!(said[1], (None, "the probe did not end within 30ms, and was killed".to_owned()));
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
}

#[tokio::test]
async fn there_is_one_probe_at_a_time_even_if_it_cannot_be_killed() {
    // Neither does it end by SIGKILL, nor does a guest that hangs start it.
    for deaf in [false, true] {
        let script = Script { obeys: &[15], deaf, ..script(10, 4) };
        let grace = if deaf { Duration::ZERO } else { GRACE };
        let (scene, life) = Scene::new(script, RestartPolicy::No, grace);
        let client = async {
            scene.health(HealthStatus::Unhealthy).await;
            assert_eq!(scene.probes(), usize::from(!deaf));
            let response = scene.keeper.health.response();
            let last = said(&response).pop().unwrap();
            assert_eq!(last, (None, "the probe before has not ended by SIGKILL".to_owned()));
            if !deaf {
                // It ends at last, and the next one begins.
                scene.guests.ended.send_modify(|ended| {
                    ended.insert("health-1".to_owned(), 137);
                });
                let mut execs = scene.guests.execs.subscribe();
                let next = execs.wait_for(|execs| execs.len() == 2).await.unwrap()[1].exec_id.clone();
                assert!(next.starts_with("health-") && next != "health-1");
            }
            // The rest of the container's output is not waited for.
            scene.guests.streams.lock().unwrap().clear();
            scene.keeper.stop(None, None);
        };
        tokio::join!(life, client);
    }
}

#[tokio::test]
async fn a_pause_is_no_failure() {
    // A busy machine has this long from a probe's begin to the pause.
    let (scene, life) = Scene::new(script(2000, 1), RestartPolicy::No, GRACE);
    let client = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            scene.end_probe(1, b"", 0).await;
            scene.health(HealthStatus::Healthy).await;
            let streams = scene.probe(2).await;
            connection.pause().await.unwrap();
            // Longer than a probe may take.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert_eq!((scene.probes(), connection.state().await.unwrap().health_failures), (2, 0));
            connection.resume().await.unwrap();
            drop(streams);
            scene.guests.ended.send_modify(|ended| {
                ended.insert("health-2".to_owned(), 0);
            });
            // This one leaves something behind that holds its output open, for longer than it may
            // take itself.
            let _left = scene.probe(3).await;
            scene.guests.ended.send_modify(|ended| {
                ended.insert("health-3".to_owned(), 0);
            });
            let mut deleted = scene.guests.deleted.subscribe();
            deleted.wait_for(|deleted| deleted.len() == 3).await.unwrap();
            scene.probe(4).await;
            assert_eq!(connection.state().await.unwrap().health, "healthy");
            scene.guests.ended.send_modify(|ended| {
                ended.insert("health-4".to_owned(), 0);
            });
            deleted.wait_for(|deleted| deleted.len() == 4).await.unwrap();
            // None begins in a pause.
            connection.pause().await.unwrap();
            let probes = scene.probes();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(scene.probes(), probes);
            assert_eq!(connection.state().await.unwrap().health, "healthy");
            connection.resume().await.unwrap();
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
}

#[tokio::test]
async fn health_begins_anew_with_a_restart_and_a_stop_ends_the_probes() {
    let script = Script { exits: vec![1], ..script(60_000, 1) };
    let (scene, life) = Scene::new(script, RestartPolicy::Always, GRACE);
    let client = async {
        let mut starts = scene.guests.starts.subscribe();
        starts.wait_for(|starts| *starts == 2).await.unwrap();
        scene.status(Status::Running).await;
        assert_eq!(scene.keeper.state().health.unwrap().status, HealthStatus::Starting);
        scene.end_probe(scene.probes() + 1, b"", 0).await;
        scene.health(HealthStatus::Healthy).await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
    let probes = scene.probes();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((scene.probes(), scene.keeper.health.response()), (probes, HealthResponse::default()));
}

#[tokio::test]
async fn many_probes_leave_nothing_behind() {
    const MANY: usize = 250;
    let (scene, life) = Scene::new(script(60_000, 3), RestartPolicy::No, GRACE);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let client = async {
        scene.end_probe(1, b"", 0).await;
        scene.health(HealthStatus::Healthy).await;
        let before = descriptors();
        for number in 2..=MANY {
            scene.end_probe(number, b"said", 0).await;
        }
        let _last = scene.probe(MANY + 1).await;
        // Other tests have some, too.
        assert!(descriptors() < before + 500, "{before}, and then {}", descriptors());
        let deleted = scene.guests.deleted.borrow().len();
        assert_eq!(deleted, MANY);
        assert_eq!(scene.keeper.execs().running(), []);
        assert_eq!(scene.keeper.health.response().results.len(), 5);
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
    // One for the first status, one for the only change, and one for the stop.
    assert_eq!(scene.written_health().len(), 3);
}

//! The life of a sandbox, from its starts to its end.

use super::*;

#[tokio::test]
async fn a_container_that_ends_leaves_its_exit_and_all_its_output() {
    let (scene, life) = Scene::new(Script::default(), RestartPolicy::No, GRACE);
    let script = async {
        scene.status(Status::Running).await;
        assert_eq!(*scene.begun.lock().unwrap(), Some(Ok(())));
        let mut stdout = scene.guests.streams.lock().unwrap()[0].stdout.take().unwrap();
        let writes = tokio::task::spawn_blocking(move || stdout.write_all(&vec![b'x'; 1 << 20]));
        writes.await.unwrap().unwrap();
        scene.guests.end("", 7);
    };
    let (ended, ()) = tokio::join!(life, script);
    assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (7, "exited"));
    assert_eq!(scene.statuses(), [Status::Starting, Status::Running, Status::Stopping, Status::Exited]);
    let last = scene.keeper.state();
    assert_eq!((last.exit.unwrap().code, last.holder, last.stopped_by_command), (7, None, false));
    assert_eq!(scene.keeper.ended().await, ended);
}

#[tokio::test]
async fn stop_asks_first_and_kills_after_the_grace_and_no_policy_brings_it_back() {
    // Obeys, ignores, does not answer at all.
    let table: [(Script, Duration, u8, &str, &[u32]); 4] = [
        (Script { obeys: &[15], ..Default::default() }, GRACE, 143, "exited", &[15]),
        (Script { obeys: &[9], ..Default::default() }, Duration::from_millis(50), 137, "exited", &[15, 9]),
        (Script { obeys: &[9], ..Default::default() }, Duration::ZERO, 137, "exited", &[9]),
        (Script { deaf: true, ..Default::default() }, Duration::ZERO, 137, "killed", &[]),
    ];
    for (script, grace, code, reason, heard) in table {
        let (scene, life) = Scene::new(script.clone(), RestartPolicy::Always, grace);
        let stops = async {
            scene.status(Status::Running).await;
            scene.keeper.stop(None, None);
            // A second wish of somebody else changes nothing.
            scene.keeper.stop(None, None);
        };
        let (ended, ()) = tokio::join!(life, stops);
        assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (code, reason), "{script:?}");
        let mut signals: Vec<u32> =
            scene.guests.heard.borrow().iter().map(|(_, signal, _)| *signal).collect();
        signals.dedup();
        assert_eq!(signals, heard, "{script:?}");
        assert!(scene.keeper.state().stopped_by_command);
        assert_eq!(*scene.guests.starts.borrow(), 1);
    }
}

#[tokio::test]
async fn a_keeper_that_is_told_to_end_ends_its_sandbox_and_no_user_has_stopped_it() {
    let script = Script { obeys: &[15], ..Default::default() };
    let (scene, life) = Scene::new(script, RestartPolicy::UnlessStopped, GRACE);
    let leaves = async {
        scene.status(Status::Running).await;
        scene.keeper.leave();
    };
    let (ended, ()) = tokio::join!(life, leaves);
    assert_eq!((ended.exit.code, *scene.guests.starts.borrow()), (143, 1));
    assert!(!scene.keeper.state().stopped_by_command);
}

#[tokio::test]
async fn a_policy_starts_it_again_so_often_and_the_last_exit_counts() {
    let script = Script { exits: vec![1, 2, 0], ..Default::default() };
    for (policy, code, starts) in
        [(RestartPolicy::No, 1, 1), (RestartPolicy::OnFailure(1), 2, 2), (RestartPolicy::OnFailure(0), 0, 3)]
    {
        let (scene, life) = Scene::new(script.clone(), policy, GRACE);
        let ended = life.await;
        assert_eq!((ended.exit.code, *scene.guests.starts.borrow()), (code, starts), "{policy}");
        assert_eq!(scene.keeper.state().restarts, u32::try_from(starts - 1).unwrap());
        assert_eq!(*scene.begun.lock().unwrap(), Some(Ok(())));
    }
}

#[tokio::test]
async fn a_wait_for_a_restart_ends_with_a_stop_and_with_another_policy() {
    // Each failure has a code of its own, so that the fifth is told from the starts before it;
    // the wait after it is long enough for a busy machine.
    let script = Script { exits: (1..30).collect(), ..Default::default() };
    for stop in [true, false] {
        let (scene, life) = Scene::new(script.clone(), RestartPolicy::Always, GRACE);
        let ends = async {
            let mut state = scene.keeper.state.subscribe();
            state.wait_for(|state| state.exit.as_ref().is_some_and(|exit| exit.code == 5)).await.unwrap();
            if stop {
                scene.keeper.stop(None, None);
            } else {
                scene.keeper.policy.send_replace(RestartPolicy::No);
            }
        };
        let (ended, ()) = tokio::join!(life, ends);
        assert_eq!((ended.exit.code, scene.keeper.state().status), (5, Status::Exited));
        assert_eq!(*scene.guests.starts.borrow(), 5);
    }
}

#[tokio::test]
async fn a_machine_that_ends_without_a_word_is_told_as_the_reason() {
    let (scene, life) = Scene::new(Script::default(), RestartPolicy::No, GRACE);
    let kills = async {
        scene.status(Status::Running).await;
        let sandbox = scene.keeper.sandbox().clone().unwrap();
        sandbox.machine().kill();
        scene.guests.end("", BROKEN);
    };
    let (ended, ()) = tokio::join!(life, kills);
    assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (125, "failed"));
    assert!(ended.detail.contains("the machine ended"), "{ended:?}");
    assert_eq!(scene.keeper.state().detail, ended.detail);
}

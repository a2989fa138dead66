//! Execs of one client.

use super::*;

#[tokio::test]
async fn an_exec_has_its_bytes_to_itself_and_ends_with_its_client() {
    let (scene, life) =
        Scene::new(Script { obeys: &[1, 15], ..Default::default() }, RestartPolicy::No, GRACE);
    let spec = ExecSpec { args: vec!["cat".into()], stdin: true, ..Default::default() };
    let client = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            let exec = connection.exec(&spec).await.unwrap().unwrap();
            let far = scene.guests.streams.lock().unwrap().pop().unwrap();
            let claimed = exec.claimed.unwrap();
            claimed.streams.stdin.as_ref().unwrap().write_all(b"in").unwrap();
            far.stdout.as_ref().unwrap().write_all(b"out").unwrap();
            let (mut came, mut said) = ([0; 2], [0; 3]);
            far.stdin.as_ref().unwrap().read_exact(&mut came).unwrap();
            claimed.streams.stdout.as_ref().unwrap().read_exact(&mut said).unwrap();
            assert_eq!((&came, &said), (b"in", b"out"));
            assert_eq!(connection.state().await.unwrap().execs.len(), 1);
            // The client ends its input: so the process reads.
            claimed.streams.stdin.as_ref().unwrap().shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(far.stdin.as_ref().unwrap().read(&mut [0]).unwrap(), 0);
            let waits = connection.wait(&exec.id);
            scene.guests.ended.send_modify(|ended| {
                ended.insert(exec.id.clone(), 5);
            });
            assert_eq!(waits.await.unwrap().exit.code, 5);
            // A second one, whose client dies.
            let exec = connection.exec(&spec).await.unwrap().unwrap();
            drop(exec.claimed);
            scene.guests.heard(&exec.id, 1, true).await;
            assert_eq!(connection.wait(&exec.id).await.unwrap().exit.code, 129);
            // A detached one lives on.
            let detached = ExecSpec { detach: true, stdin: false, ..spec.clone() };
            let exec = connection.exec(&detached).await.unwrap().unwrap();
            assert!(exec.claimed.is_none());
            assert!(connection.wait("nobody").await.is_err());
        })
        .await;
        scene.keeper.stop(None, None);
    };
    let (ended, ()) = tokio::join!(life, client);
    assert_eq!(ended.exit.code, 143);
}

#[tokio::test]
async fn an_exec_whose_client_leaves_before_it_began_is_attended_and_takes_every_signal() {
    let script = Script { obeys: &[1, 15], holds_execs: true, ..Default::default() };
    let (scene, life) = Scene::new(script, RestartPolicy::No, GRACE);
    let plain = ExecSpec { args: vec!["cat".into()], ..Default::default() };
    let session = ExecSpec { session: true, ..plain.clone() };
    let client = async {
        scene.status(Status::Running).await;
        served_at(&scene, async |place, connection| {
            let mut asked = scene.guests.execs.subscribe();
            for (number, spec) in [&session, &plain].into_iter().enumerate() {
                let client = Connection::open(&place).await.unwrap();
                let (leave, left) = tokio::sync::oneshot::channel::<()>();
                let asks = async {
                    tokio::select! {
                        _ = client.exec(spec) => unreachable!("the guest does not let it start"),
                        _ = left => {}
                    }
                    drop(client);
                };
                let other = async {
                    asked.wait_for(|asked| asked.len() == number + 1).await.unwrap();
                    leave.send(()).unwrap();
                };
                tokio::join!(asks, other);
                let execs = connection.state().await.unwrap().execs;
                let id = execs[0].exec_id.clone();
                if spec.session {
                    // A signal that comes too early for the agent waits, and is not lost.
                    let tell = connection.kill(&id, Signal::TERM);
                    let go = async { scene.guests.lets.add_permits(1) };
                    let (told, ()) = tokio::join!(tell, go);
                    told.unwrap();
                    assert_eq!(connection.wait(&id).await.unwrap().exit.code, 143);
                } else {
                    // It is as if its client had died a moment later.
                    scene.guests.lets.add_permits(1);
                    scene.guests.heard(&id, 1, true).await;
                    assert_eq!(connection.wait(&id).await.unwrap().exit.code, 129);
                }
                assert_eq!(connection.state().await.unwrap().execs, []);
            }
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
}

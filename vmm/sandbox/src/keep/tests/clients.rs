//! Clients that ask at the same time.

use super::*;

#[tokio::test]
async fn a_policy_that_cannot_be_written_yet_holds_up_no_other_client() {
    let (scene, life) = Scene::new(Script { obeys: &[15], ..Default::default() }, RestartPolicy::No, GRACE);
    let clients = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            let record = Arc::clone(&scene.record);
            let (go, waits) = std::sync::mpsc::channel::<()>();
            let (taken, is_taken) = tokio::sync::oneshot::channel();
            let holds = tokio::task::spawn_blocking(move || {
                let _held = record.lock().unwrap();
                taken.send(()).unwrap();
                waits.recv().unwrap();
            });
            is_taken.await.unwrap();
            let other = async {
                // Answered while the other call waits.
                assert_eq!(connection.state().await.unwrap().restart, "no");
                go.send(()).unwrap();
            };
            let always = Change { restart: Some(RestartPolicy::Always), ..Change::default() };
            let (set, ()) = tokio::join!(connection.update(always), other);
            set.unwrap();
            holds.await.unwrap();
            assert_eq!(connection.state().await.unwrap().restart, "always");
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, clients);
}

#[tokio::test]
async fn clients_at_once_get_one_order_and_all_of_them_an_answer() {
    let (scene, life) =
        Scene::new(Script { obeys: &[15], ..Default::default() }, RestartPolicy::Always, GRACE);
    let clients = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            connection.pause().await.unwrap();
            assert_eq!(scene.keeper.state().status, Status::Paused);
            assert!(connection.pause().await.unwrap_err().to_string().contains("paused"));
            let spec = ExecSpec { args: vec!["x".into()], ..Default::default() };
            assert!(connection.exec(&spec).await.unwrap_err().to_string().contains("paused"));
            connection.resume().await.unwrap();
            connection.pause().await.unwrap();
            // A stop wakes it, and everybody hears of the same end.
            let (one, two, three) =
                tokio::join!(connection.stop(None, None), connection.stop(None, None), connection.wait(""));
            let codes = [one, two, three].map(|end| end.unwrap().exit.code);
            assert_eq!(codes, [143; 3]);
            assert!(connection.kill("", Signal::TERM).await.is_err());
        })
        .await;
    };
    tokio::join!(life, clients);
}

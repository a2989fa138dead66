//! Further containers.

use nelly_vmm::text;

use super::*;
use crate::connect::RunSpec;
use crate::state::record::ImageRecord;

/// A container on a disk of two files.
fn spec(name: &str, disk: &[PathBuf]) -> RunSpec {
    let image =
        ImageRecord { reference: "other".into(), digest: "sha256:00".into(), disk_paths: disk.to_vec() };
    RunSpec { name: Some(name.parse().unwrap()), image, container: container(), size: (0, 0), detach: false }
}

/// The sockets of a scene's keeper, and a client of them.
async fn connected(scene: &Scene, place: &std::path::Path) -> (Sockets, Connection) {
    let home = place.to_owned();
    let environment = move |name: &str| (name == "NELLY_HOME").then(|| home.clone());
    let directory = RuntimeDir::make(environment, Id::random().unwrap()).unwrap();
    let sockets = Sockets::serve(&directory, &scene.keeper, &Open::default()).await.unwrap();
    let connection = Connection::open(directory.path()).await.unwrap();
    (sockets, connection)
}

#[tokio::test]
async fn a_further_container_has_a_disk_and_a_client_and_the_machine_waits_for_it() {
    let place = tempfile::tempdir().unwrap();
    let disk: Vec<PathBuf> = ["a", "b"].map(|name| place.path().join(name)).to_vec();
    disk.iter().for_each(|path| std::fs::write(path, [1; 4096]).unwrap());
    let relay = place.path().join("relay");
    let relays = vec![Relay::inward(&format!("{}=/served", relay.display())).unwrap()];
    let (scene, life) = Scene::new(Script { relays, ..Script::default() }, RestartPolicy::No, GRACE);
    let script = async {
        scene.status(Status::Running).await;
        let (_sockets, connection) = connected(&scene, place.path()).await;
        assert!(relay.exists());
        let run = connection.run(&spec("side", &disk)).await.unwrap().unwrap();
        let record = scene.keeper.state().containers.remove(0);
        assert_eq!((record.id.to_string(), record.name.as_str()), (run.id.clone(), "side"));
        assert_eq!((record.status, record.image.disk_paths), (Status::Running, disk.clone()));
        let said = |error: crate::connect::ConnectError| text::chain(&error);
        let taken = connection.run(&spec("side", &disk)).await.unwrap_err();
        assert!(said(taken).contains("another container of the sandbox has the name side"));
        let full = said(connection.run(&spec("third", &disk)).await.unwrap_err());
        assert!(full.contains("cannot attach the image's disk"), "{full}");
        let relative = said(connection.run(&spec("third", &["x".into()])).await.unwrap_err());
        assert!(relative.contains("disk x") && relative.contains("absolute"), "{relative}");
        assert_eq!(scene.keeper.state().containers.len(), 1, "what did not start is not listed");

        // Named by its name, its id, and the beginning of its id.
        for word in ["side", run.id.as_str(), &run.id[..8]] {
            connection.of_container(word).kill("", Signal::new(10).unwrap()).await.unwrap();
        }
        assert!(connection.of_container("none").kill("", Signal::TERM).await.is_err());
        scene.guests.heard(&run.id, 10, false).await;
        // The first one ends: the machine does not, but no other can share its network.
        scene.guests.end("", 3);
        let alone = said(connection.run(&spec("third", &disk)).await.unwrap_err());
        assert!(alone.contains("first container has ended"), "{alone}");
        assert_eq!(scene.keeper.state().status, Status::Running);
        // Its relays end with it.
        while relay.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let wait = tokio::spawn({
            let side = connection.of_container("side");
            async move { side.wait("").await.unwrap() }
        });
        scene.guests.end(&run.id, 5);
        assert_eq!(wait.await.unwrap().exit.code, 5);
        drop(run);
    };
    let (ended, ()) = tokio::join!(life, script);
    assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (3, "exited"));
    let last = scene.keeper.state().containers.remove(0);
    assert_eq!((last.status, last.exit.unwrap().code), (Status::Exited, 5));
}

#[tokio::test]
async fn a_further_container_ends_with_its_client_and_a_stop_reaches_all() {
    let place = tempfile::tempdir().unwrap();
    let disk = [place.path().join("disk")];
    std::fs::write(&disk[0], [1; 4096]).unwrap();
    let script = Script { obeys: &[1, 15], ..Default::default() };
    let (scene, life) = Scene::new(script, RestartPolicy::Always, GRACE);
    let script = async {
        scene.status(Status::Running).await;
        let (_sockets, connection) = connected(&scene, place.path()).await;
        let first = connection.run(&spec("first", &disk)).await.unwrap().unwrap();
        let id = first.id.clone();
        drop(first);
        scene.guests.heard(&id, 1, true).await;
        assert_eq!(connection.of_container("first").wait("").await.unwrap().exit.code, 129);
        // Its slot is empty again, in a moment, and its name free.
        let detached = RunSpec { detach: true, ..spec("first", &disk) };
        let second = loop {
            match connection.run(&detached).await {
                Ok(started) => break started.unwrap(),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert!(second.claimed.is_none() && second.id != id);
        let stopped = connection.stop(None, None).await.unwrap();
        assert_eq!(stopped.exit.code, 143);
        scene.guests.heard(&second.id, 15, false).await;
    };
    let (ended, ()) = tokio::join!(life, script);
    assert_eq!(ended.exit.code, 143);
}

//! Execs whose clients come and go.

use super::*;

/// What an attachment was sent: output, and what was lost; read to its end.
fn frames(mut stream: UnixStream) -> (Vec<u8>, u64) {
    let (mut all, mut decoder, mut said, mut lost) = (Vec::new(), Decoder::default(), Vec::new(), 0);
    stream.read_to_end(&mut all).unwrap();
    decoder.push(&all);
    while let Some(frame) = decoder.take().unwrap() {
        match frame {
            Frame::Bytes(_, bytes) => said.extend(bytes),
            Frame::Lost(count) => lost += count,
        }
    }
    (said, lost)
}

/// Reads output of an attachment until this came.
async fn until(stream: &UnixStream, wanted: &[u8]) {
    let (mut stream, wanted) = (stream.try_clone().unwrap(), wanted.to_owned());
    let reads = move || {
        let (mut decoder, mut said, mut buffer) = (Decoder::default(), Vec::new(), [0; 512]);
        while !said.ends_with(&wanted) {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "it ended after {said:?}");
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.take().unwrap() {
                if let Frame::Bytes(_, bytes) = frame {
                    said.extend(bytes);
                }
            }
        }
    };
    tokio::task::spawn_blocking(reads).await.unwrap();
}

#[tokio::test]
async fn a_session_outlives_its_clients_and_tells_its_code_to_whoever_is_there() {
    let (scene, life) =
        Scene::new(Script { obeys: &[1, 15], ..Default::default() }, RestartPolicy::No, GRACE);
    let spec = ExecSpec {
        args: vec!["sh".into()],
        stdin: true,
        session: true,
        terminal: true,
        ..Default::default()
    };
    let client = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            let exec = connection.exec(&spec).await.unwrap().unwrap();
            let stream = exec.claimed.as_ref().unwrap().streams.stdin.as_ref().unwrap().try_clone().unwrap();
            // A terminal has one stream both ways.
            let mut far = scene.guests.streams.lock().unwrap().pop().unwrap().stdin.unwrap();
            far.write_all(b"$ ").unwrap();
            until(&stream, b"$ ").await;
            let mut typed = [0; 2];
            (&stream).write_all(b"ls").unwrap();
            let typed = tokio::task::spawn_blocking(move || {
                far.read_exact(&mut typed).unwrap();
                (far, typed)
            });
            let (mut far, typed) = typed.await.unwrap();
            assert_eq!(&typed, b"ls");
            let one = &connection.state().await.unwrap().execs[0];
            assert_eq!((one.session, one.attached, one.terminal), (true, 1, true));
            assert!(one.started_unix_ns > 0 && one.args == ["sh"]);
            // Its client dies: it goes on, and what it says is held.
            drop((stream, exec.claimed));
            let mut execs = connection.state().await.unwrap().execs;
            while execs[0].attached > 0 {
                tokio::task::yield_now().await;
                execs = connection.state().await.unwrap().execs;
            }
            far.write_all(b"more ").unwrap();
            // Two come back, by the beginning of its id; both see the latest.
            let beginning = &exec.id[..6];
            let back = [
                connection.attach(beginning, true).await.unwrap(),
                connection.attach(&exec.id, false).await.unwrap(),
            ];
            assert!(back.iter().all(|one| one.exec == exec.id && one.terminal));
            assert_eq!(back.each_ref().map(|one| one.stdin), [true, false]);
            let streams = back.map(|one| (one.claimed.streams.stdin.unwrap(), one.claimed.connection));
            for (stream, _) in &streams {
                until(stream, b"$ more ").await;
            }
            assert_eq!(connection.state().await.unwrap().execs[0].attached, 2);
            assert_eq!(scene.guests.heard.borrow().iter().filter(|(exec, ..)| !exec.is_empty()).count(), 0);
            // Its end is everybody's, also of one that comes later.
            far.write_all(b"bye").unwrap();
            drop(far);
            scene.guests.ended.send_modify(|ended| {
                ended.insert(exec.id.clone(), 6);
            });
            for (stream, _) in streams {
                let read = tokio::task::spawn_blocking(move || frames(stream));
                assert_eq!(read.await.unwrap(), (b"bye".to_vec(), 0));
            }
            assert_eq!(connection.wait(beginning).await.unwrap().exit.code, 6);
            assert_eq!(connection.state().await.unwrap().execs, []);
            let late = connection.attach(beginning, true).await.unwrap();
            let read = tokio::task::spawn_blocking(move || frames(late.claimed.streams.stdin.unwrap()))
                .await
                .unwrap();
            assert_eq!(read, (b"$ more bye".to_vec(), 0));
            // What is no session, or nothing, is refused.
            let plain = ExecSpec { session: false, ..spec.clone() };
            let plain = connection.exec(&plain).await.unwrap().unwrap();
            let refused = connection.attach(&plain.id, false).await.unwrap_err().to_string();
            assert!(refused.contains("no session"), "{refused}");
            assert!(connection.attach("none", false).await.unwrap_err().to_string().contains("none"));
            let both = ExecSpec { detach: true, ..spec.clone() };
            assert!(connection.exec(&both).await.is_err());
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
}

#[tokio::test]
async fn the_end_of_a_sessions_first_input_is_told_and_its_death_is_not() {
    let (scene, life) = Scene::new(Script { obeys: &[15], ..Default::default() }, RestartPolicy::No, GRACE);
    let spec = ExecSpec { args: vec!["cat".into()], stdin: true, session: true, ..Default::default() };
    let client = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            for dies in [true, false] {
                let exec = connection.exec(&spec).await.unwrap().unwrap();
                let far = scene.guests.streams.lock().unwrap().pop().unwrap();
                let mut reads = far.stdin.unwrap();
                let claimed = exec.claimed.unwrap();
                let stream = claimed.streams.stdin.unwrap();
                (&stream).write_all(b"said").unwrap();
                if dies {
                    // Its stream first, as the system may close them.
                    drop(stream);
                    drop(claimed.connection);
                    // A later client types on.
                    let later = connection.attach(&exec.id, true).await.unwrap();
                    let stream = later.claimed.streams.stdin.unwrap();
                    (&stream).write_all(b" more").unwrap();
                    // The end of its input is not that of the process.
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    let mut came = [0; 9];
                    let came = tokio::task::spawn_blocking(move || {
                        reads.read_exact(&mut came).unwrap();
                        reads.set_nonblocking(true).unwrap();
                        (came, reads.read(&mut [0]).map_err(|error| error.kind()))
                    });
                    let open = Err(std::io::ErrorKind::WouldBlock);
                    assert_eq!(came.await.unwrap(), (*b"said more", open));
                } else {
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    let mut came = String::new();
                    let came = tokio::task::spawn_blocking(move || {
                        reads.read_to_string(&mut came).unwrap();
                        came
                    });
                    assert_eq!(came.await.unwrap(), "said");
                }
            }
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
}

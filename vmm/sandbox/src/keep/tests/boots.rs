//! The life of a machine of `nelly boot`. Its guest says one byte, and hears nothing.

use nelly_vmm::config::Endpoint;

use super::*;
use crate::connect::ConnectError;

/// Starts one.
pub(super) async fn start(platform: Platform) -> Result<Sandbox, SandboxError> {
    let (mut config, resources, _console) = machine_of();
    (config.serial, config.vsock, config.platform) = (Endpoint::Stream, None, platform);
    Sandbox::boot(config, resources, Isolation::Thread, None).await
}

#[tokio::test]
async fn a_booted_machine_is_asked_by_its_button_and_killed_after_the_grace() {
    let short = Duration::from_millis(50);
    for (platform, grace, detail) in [
        (Platform::Acpi, short, "did not switch itself off within 0.05 s"),
        // Without a button there is nothing to wait for.
        (Platform::Mptable, GRACE, "no power button"),
        (Platform::Acpi, Duration::ZERO, ""),
    ] {
        let (scene, life) = Scene::booted(platform, grace);
        let stops = async {
            scene.status(Status::Running).await;
            assert_eq!(*scene.begun.lock().unwrap(), Some(Ok(())));
            scene.keeper.stop(None, None);
        };
        let (ended, ()) = tokio::join!(life, stops);
        assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (137, "killed"), "{platform:?}");
        assert!(ended.detail.contains(detail), "{platform:?}: {}", ended.detail);
        assert_eq!(scene.statuses(), [Status::Starting, Status::Running, Status::Stopping, Status::Exited]);
    }
}

#[tokio::test]
async fn a_booted_machine_is_attached_at_its_serial_port_and_refuses_what_needs_an_agent() {
    let (scene, life) = Scene::booted(Platform::Acpi, GRACE);
    let asks = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            let refused =
                connection.exec(&ExecSpec { args: vec!["true".into()], ..ExecSpec::default() }).await;
            let error = nelly_vmm::text::chain(&refused.err().unwrap());
            assert!(error.contains("has no agent of Nelly"), "{error}");
            let refused: Result<_, ConnectError> = connection.stats().await;
            assert!(refused.is_err());
            let refused = connection.kill("", Signal::TERM).await;
            let error = nelly_vmm::text::chain(&refused.err().unwrap());
            assert!(error.contains("has no agent of Nelly"), "{error}");
            let attached = connection.attach("", true).await.unwrap();
            assert!(attached.terminal && attached.stdin);
            let mut stream = attached.claimed.streams.stdin.unwrap();
            let reads = tokio::task::spawn_blocking(move || {
                let (mut decoder, mut buffer) = (Decoder::default(), [0; 64]);
                loop {
                    let count = stream.read(&mut buffer).unwrap();
                    decoder.push(&buffer[..count]);
                    if let Some(frame) = decoder.take().unwrap() {
                        return frame;
                    }
                }
            });
            assert_eq!(
                reads.await.unwrap(),
                Frame::Bytes(crate::wire::frames::Source::Output, b".".to_vec())
            );
            connection.kill("", Signal::KILL).await.unwrap();
        })
        .await;
    };
    let (ended, ()) = tokio::join!(life, asks);
    assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (137, "killed"));
    assert!(scene.keeper.state().stopped_by_command);
}

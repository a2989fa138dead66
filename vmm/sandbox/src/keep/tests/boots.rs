//! The life of a machine of `nelly boot`. Its guest says one byte, and hears nothing.

use nelly_vmm::arch::x86_64::layout;
use nelly_vmm::config::{BootProtocol, Endpoint};

use super::*;
use crate::connect::ConnectError;
use crate::life::stages::machine_of_code;

/// What is booted.
#[derive(Clone, Copy, Default)]
pub(super) struct Booted {
    pub(super) platform: Platform,
    /// A guest's code, instead of that which says one byte.
    pub(super) code: Option<fn() -> Vec<u8>>,
    /// It has ended, and its serial stream is lost, before the keeper looks at it.
    pub(super) ends: bool,
}

/// Starts one.
pub(super) async fn start(booted: Booted) -> Result<Sandbox, SandboxError> {
    let (mut config, resources, _console) =
        booted.code.map_or_else(machine_of, |code| machine_of_code(&code()));
    (config.serial, config.vsock, config.platform) = (Endpoint::Stream, None, booted.platform);
    // Nothing is mapped then, so a guest reaches what lies above its memory.
    config.boot_protocol = BootProtocol::Pvh;
    let sandbox = Sandbox::boot(config, resources, Isolation::Thread, None, false).await?;
    if booted.ends {
        drop(sandbox.serial().await);
        sandbox.outcome().await;
    }
    Ok(sandbox)
}

/// mov eax, address; mov dword [eax], value
fn store(address: u32, value: u32) -> Vec<u8> {
    [&[0xb8], &address.to_le_bytes()[..], &[0xc7, 0x00], &value.to_le_bytes()].concat()
}

/// The machine is off after: mov edx, port; mov al, value; out dx, al; jmp $
fn off() -> Vec<u8> {
    let port = u32::from(layout::ACPI_SLEEP_CONTROL);
    let value = layout::ACPI_SLEEP_TYPE_S5 << 2 | 1 << 5;
    [&[0xba], &port.to_le_bytes()[..], &[0xb0, value, 0xee, 0xeb, 0xfe]].concat()
}

/// A guest that switches itself off at the second press of its power button. It sees them without
/// an interrupt handler: each has a vector of its own, whose bit its local APIC shows as pending
/// (Intel manual, volume 3A, 11.8.4).
fn obeys_the_second_press() -> Vec<u8> {
    const LOCAL_APIC: u32 = 0xfee0_0000;
    const IO_APIC: u32 = 0xfec0_0000;
    let entry = 0x10 + 2 * layout::POWER_BUTTON_LINE.number();
    let io_apic = |register, value| [store(IO_APIC, register), store(IO_APIC + 0x10, value)].concat();
    let press = |vector: u32| {
        let pending = LOCAL_APIC + 0x200 + vector / 32 * 0x10;
        // mov eax, pending; mov eax, [eax]; test eax, bit; jz back to the first
        let bit = 1_u32 << (vector % 32);
        let wait =
            [&[0xb8], &pending.to_le_bytes()[..], &[0x8b, 0x00, 0xa9], &bit.to_le_bytes(), &[0x74, 0xf2]];
        [io_apic(entry, vector), wait.concat()].concat()
    };
    // Switched on by the spurious vector; every entry goes to the first processor.
    let begin = [store(LOCAL_APIC + 0xf0, 0x1ff), io_apic(entry + 1, 0)].concat();
    [begin, press(0x40), press(0x41), off()].concat()
}

#[tokio::test]
async fn the_power_button_is_pressed_again_until_the_guest_hears_it() {
    let (scene, life) =
        Scene::of_guest(Booted { platform: Platform::Acpi, code: Some(obeys_the_second_press), ends: false });
    let stops = async {
        scene.status(Status::Running).await;
        scene.keeper.stop(None, Some(SOON));
    };
    let (ended, ()) = tokio::join!(life, stops);
    assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (0, "power_off"), "{}", ended.detail);
}

#[tokio::test]
async fn a_monitor_that_does_not_answer_holds_up_neither_a_grace_nor_a_kill() {
    for (more, detail) in [(None, "did not answer"), (Some(Duration::ZERO), "")] {
        let (scene, life) = Scene::booted(Platform::Acpi, GRACE);
        // A pause that is not answered.
        let pause = scene.keeper.pausing.lock().await;
        let stops = async {
            scene.status(Status::Running).await;
            match more {
                None => scene.keeper.stop(None, Some(Duration::from_millis(50))),
                Some(more) => {
                    scene.keeper.stop(None, Some(SOON));
                    scene.status(Status::Stopping).await;
                    scene.keeper.stop(None, Some(more));
                }
            }
        };
        let (ended, ()) = tokio::join!(life, stops);
        drop(pause);
        assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (137, "killed"));
        assert!(
            ended.detail.contains(detail) && ended.detail.is_empty() == detail.is_empty(),
            "{}",
            ended.detail
        );
    }
}

#[tokio::test]
async fn a_guest_that_ends_at_once_was_started_and_says_how_it_ended() {
    // ud2: without a table of handlers, a triple fault.
    let faults = || vec![0x0f, 0x0b];
    for (code, ends, end) in [
        (off as fn() -> Vec<u8>, false, (0, "power_off")),
        (off, true, (0, "power_off")),
        (faults, true, (122, "triple_fault")),
    ] {
        let (scene, life) = Scene::of_guest(Booted { platform: Platform::Acpi, code: Some(code), ends });
        let ended = life.await;
        assert_eq!((ended.exit.code, ended.exit.reason.as_str()), end, "{}", ended.detail);
        assert_eq!(*scene.begun.lock().unwrap(), Some(Ok(())));
        assert!(scene.keeper.state().started_at.is_some());
    }
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

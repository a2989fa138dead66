//! Machines that are saved and restored: in which order, and what comes after.

use std::fs::File;

use super::*;
use crate::config::CpuCount;

/// Both files of a snapshot, and other descriptors of the same.
pub(super) fn files() -> (Snapshot, Snapshot) {
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let again = |file: &File| file.try_clone().unwrap().into();
    let other = Snapshot { state: again(&state), memory: again(&memory) };
    (Snapshot { state: state.into(), memory: memory.into() }, other)
}

fn two_cpus(config: &mut MachineConfig) {
    config.cpus = CpuCount::new(2).unwrap();
    config.rng = true;
    config.on_reset = OnReset::Reboot;
}

/// What a machine of two vCPUs was saved to.
fn saved() -> Snapshot {
    saved_of(two_cpus)
}

fn saved_of(change: impl FnOnce(&mut MachineConfig)) -> Snapshot {
    let fake = Fake::new();
    fake.script(0, [sign()]);
    let machine = start(&fake, change);
    assert!(fake.wait_until(|record| record.answers.len() == 1));
    machine.pause().unwrap();
    let (to, from) = files();
    machine.save(to).unwrap();
    assert_eq!(machine.state().unwrap(), State::Paused);
    drop(machine);
    assert_gone(&fake);
    from
}

fn restore(fake: &Fake, change: impl FnOnce(&mut MachineConfig)) -> Result<Machine, StartError> {
    restore_from(saved(), fake, change)
}

fn restore_from(
    saved: Snapshot,
    fake: &Fake,
    change: impl FnOnce(&mut MachineConfig),
) -> Result<Machine, StartError> {
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    change(&mut config);
    begin_with(fake, &config, resources, Some(saved))
}

#[test]
fn what_vcpus_share_is_restored_after_them_and_a_reset_boots_the_kernel() {
    let fake = Fake::new();
    fake.script(0, [sign(), Step::out(0x64, &[0xfe]), sign()]);
    let machine = restore(&fake, two_cpus).unwrap();
    assert_eq!(machine.state().unwrap(), State::Paused);
    let record = fake.record();
    assert_eq!((record.restores, record.loads.len(), record.answers.len()), (vec![2], 0, 0));
    // A pause of what is paused is one, and it can be saved again before it has run.
    machine.pause().unwrap();
    machine.save(files().0).unwrap();
    machine.resume().unwrap();
    assert!(fake.wait_until(|record| record.answers.len() == 2));
    let record = fake.record();
    assert_eq!((record.restores, record.loads.len()), (vec![2], 1), "its second start is a boot");
    assert_eq!(machine.inspect().unwrap().starts, 2);
    machine.stop().unwrap();
    let outcome = machine.wait();
    assert_eq!((outcome.reason, outcome.starts), (EndReason::Stopped, 2));
    let at = |name| outcome.timeline.at(name).unwrap();
    assert!(at(name::MEMORY_RESTORED) <= at(name::FIRST_ENTRY));
    assert_gone(&fake);
}

#[test]
fn a_restored_machine_has_the_button_that_its_guest_was_told_of() {
    for (told, here, has) in
        [(Platform::Acpi, Platform::Auto, true), (Platform::Mptable, Platform::Acpi, false)]
    {
        let fake = Fake::new();
        fake.script(0, [Step::WaitForLine(layout::POWER_BUTTON_LINE), off()]);
        let saved = saved_of(|config| config.platform = told);
        let machine = restore_from(saved, &fake, |config| config.platform = here).unwrap();
        machine.resume().unwrap();
        match machine.press_power_button() {
            Ok(()) => assert_eq!((has, machine.wait().reason), (true, EndReason::PowerOff)),
            Err(error) => {
                assert!(!has && matches!(error, ControlError::NoPowerButton), "{told:?}: {error:?}");
                machine.kill();
            }
        }
    }
}

#[test]
fn what_is_refused_leaves_nothing() {
    let fake = Fake::new();
    let other = |config: &mut MachineConfig| {
        two_cpus(config);
        config.rng = false;
        config.spare_slots = 1;
    };
    let StartError::Refused(error) = restore(&fake, other).unwrap_err() else { panic!("it is refused") };
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(why, "the saved machine has in slot 0 entropy, this one has nothing");
    assert_gone(&fake);
}

#[test]
fn only_a_paused_machine_is_saved() {
    let fake = Fake::new();
    let machine = start(&fake, |_| {});
    let refused = |result: Result<(), ControlError>| match result {
        Err(ControlError::Refused(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(machine.save(files().0)), "the machine is Running");
    machine.pause().unwrap();
    machine.save(files().0).unwrap();
    machine.resume().unwrap();
    assert_eq!(refused(machine.save(files().0)), "the machine is Running");
}

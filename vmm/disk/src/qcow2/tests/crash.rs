//! A crash at every write, and a loss of power that keeps any of the writes since the last flush.

use super::model::{Modelled, SIZE};
use super::*;
use crate::testing::{Action, Dice, apply};

/// Whether every sector that was flushed is as it was then, or as it became later.
fn judge(bytes: Vec<u8>, base: Option<&[u8]>, allowed: &[Vec<u8>], what: &str) {
    let store = Arc::new(Recorder::new(bytes));
    let disk = open(&store, base);
    let found = contents(&disk);
    for (sector, bytes) in found.chunks(512).enumerate() {
        let fits = allowed.iter().any(|model| {
            let one = model.get(sector * 512..).and_then(|rest| rest.get(..512)).unwrap_or(&[0; 512]);
            one == bytes
        });
        assert!(fits, "{what}: the sector {sector} is {}", bytes[0]);
    }
    drop(disk);
    // It can be used on: what was leaked stays leaked, and nothing gets worse.
    let disk = open(&store, base);
    write(&disk, 0, &[7; 4096]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    judge_no_corruption(&store.bytes(), what);
}

/// qemu-img finds leaks at most.
fn judge_no_corruption(bytes: &[u8], what: &str) {
    let (code, said) = judged(bytes);
    assert!(matches!(code, Some(0 | 3)), "{what}: {said}");
}

#[test]
fn a_crash_at_any_write_leaves_a_consistent_image() {
    for seed in 0..4 {
        let mut modelled = Modelled::new(100 + seed, [12, 9, 16][seed as usize % 3], seed % 2 == 1);
        for _ in 0..20 {
            modelled.step();
        }
        modelled.disk().flush().unwrap();
        let mut base_bytes = modelled.store.bytes();
        modelled.store.actions();
        // The models since the last flush, each with how much was recorded before it.
        let mut models = vec![(0, modelled.model.clone())];
        let mut flushed = vec![0];
        for step in 0..16 {
            modelled.step();
            models.push((modelled.store.count(), modelled.model.clone()));
            if step % 5 == 4 {
                modelled.disk().flush().unwrap();
                flushed.push(modelled.store.count());
                models.push((modelled.store.count(), modelled.model.clone()));
            }
        }
        let actions = modelled.store.actions();
        let mut dice = Dice(seed + 99);
        let mut synced = base_bytes.clone();
        let mut since: Vec<Action> = Vec::new();
        let step = (actions.len() / 40).max(1);
        for cut in 0..=actions.len() {
            if cut % step == 0 {
                let last = *flushed.iter().rev().find(|count| **count <= cut).unwrap();
                // From the state of the last flush to that of the request in which it was cut.
                let from = models.iter().position(|(count, _)| *count >= last).unwrap();
                let to = models.iter().position(|(count, _)| *count > cut).unwrap_or(models.len() - 1);
                let allowed: Vec<_> = models[from..=to].iter().map(|(_, model)| model.clone()).collect();
                let what = format!("seed {seed}, cut at {cut} of {}", actions.len());
                judge(base_bytes.clone(), modelled.base.as_deref(), &allowed, &what);
                judge(
                    lossy(&synced, &since, &mut dice),
                    modelled.base.as_deref(),
                    &allowed,
                    &(what + ", power lost"),
                );
            }
            let Some(action) = actions.get(cut) else { break };
            apply(&mut base_bytes, action);
            if matches!(action, Action::Sync) {
                synced = base_bytes.clone();
                since.clear();
            } else {
                since.push(action.clone());
            }
        }
        assert!(modelled.model.len() >= SIZE as usize);
    }
}

/// What a disk may hold that lost power: of the writes since the last flush any sectors.
fn lossy(synced: &[u8], since: &[Action], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = synced.to_vec();
    for action in since {
        match action {
            Action::Write(at, data) => {
                let mut done = 0;
                while done < data.len() {
                    let to_sector = 512 - (*at as usize + done) % 512;
                    let end = data.len().min(done + to_sector);
                    if dice.roll(2) == 0 {
                        apply(&mut bytes, &Action::Write(at + done as u64, data[done..end].to_vec()));
                    }
                    done = end;
                }
            }
            other => {
                if dice.roll(2) == 0 {
                    apply(&mut bytes, other);
                }
            }
        }
    }
    bytes
}

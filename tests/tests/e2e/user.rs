//! An ordinary user: no root, no capability, /dev/kvm by its group or not at all.
//!
//! Root (as in the emulated host) becomes that user, with a /dev/kvm of its own in a mount
//! namespace: the machine's node stays as it is.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nelly_tests::{Done, nelly, run};

use super::{Home, LIMIT};

/// User and group that own nothing.
const NOBODY: u32 = 65534;
/// A group that this test gives a /dev/kvm of mode 0660 to; its number is nobody's business.
const KVM: &str = "4242";

/// Puts a node of mode 0660 and group $1 over /dev/kvm, then becomes nobody in the groups $2 and
/// runs the rest.
const BECOME: &str = r#"
set -e
group=$1 groups=$2 place=$3
shift 3
mount -t tmpfs none "$place"
mknod "$place/kvm" c 10 232
chgrp "$group" "$place/kvm"
chmod 660 "$place/kvm"
mount --bind "$place/kvm" /dev/kvm
exec setpriv --reuid 65534 --regid 65534 $groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"#;

/// `nelly WORDS` as an ordinary user who may or may not open /dev/kvm, its home at `home`.
#[track_caller]
pub(crate) fn nelly_as_nobody(home: &Path, may: bool, words: &[&str]) -> Done {
    as_nobody(home, may, words, LIMIT)
}

/// The same, with a limit of its own.
#[track_caller]
pub(crate) fn as_nobody(home: &Path, may: bool, words: &[&str], limit: Duration) -> Done {
    let place = tempfile::tempdir().unwrap();
    run(&mut without_rights(&nelly(home, words), may, place.path()), b"", limit)
}

/// What `command` is, as an ordinary user who may or may not open /dev/kvm; it is mounted at
/// `place`, which no other process sees.
pub(crate) fn without_rights(command: &Command, may: bool, place: &Path) -> Command {
    let groups = if may { format!("--groups={KVM}") } else { "--clear-groups".to_owned() };
    let mut all = Command::new("unshare");
    all.args(["--mount", "sh", "-c", BECOME, "sh", KVM, &groups]).arg(place);
    all.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => all.env(name, value),
            None => all.env_remove(name),
        };
    }
    all.env_remove("XDG_RUNTIME_DIR");
    all
}

/// A home that belongs to nobody, who runs `nelly` there.
pub(crate) fn home() -> Home {
    let home = Home { ordinary: true, ..Home::new() };
    std::os::unix::fs::chown(home.path(), Some(NOBODY), Some(NOBODY)).expect("this test needs root");
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    home
}

#[test]
fn a_container_runs_without_root() {
    if !rustix::process::getuid().is_root() {
        // Whoever runs the tests is an ordinary user already.
        let done = Home::new().sh("id -u; echo x > /new && cat /new; exit 7");
        assert_eq!(done.expect(7).out(), "0\nx\n");
        return;
    }
    let home = home();
    let done = nelly_as_nobody(
        home.path(),
        true,
        &["run", "--rm", "--", "sh", "-c", "id -u; echo x > /new && cat /new; exit 7"],
    );
    assert_eq!(done.expect(7).out(), "0\nx\n");
    // What it left is a cache, and that is the user's.
    for entry in std::fs::read_dir(home.path()).unwrap() {
        let owner = entry.unwrap().metadata().unwrap().uid();
        assert_eq!(owner, NOBODY);
    }
    nelly_as_nobody(home.path(), true, &["doctor"]).expect(0);
}

#[test]
fn without_permission_it_says_which_group_to_join() {
    if !rustix::process::getuid().is_root() {
        // A user cannot take /dev/kvm from itself; `make test` runs this as root in the emulated
        // host.
        return;
    }
    let home = home();
    let done = nelly_as_nobody(home.path(), false, &["run", "--rm", "--", "true"]);
    done.expect(125);
    assert!(done.err().contains("/dev/kvm: permission denied"), "{}", done.err());
    assert!(done.err().contains("usermod"), "{}", done.err());
    let kernel = nelly_tests::kernel();
    let done = nelly_as_nobody(home.path(), false, &["boot", "--kernel", kernel.to_str().unwrap()]);
    done.expect(125);
    assert!(done.err().contains("/dev/kvm"), "{}", done.err());
    let done = nelly_as_nobody(home.path(), false, &["doctor"]);
    done.expect(1);
    assert!(done.out().contains("usermod"), "{}", done.out());
}

/// What is in the directories that are believed, and they themselves: nobody else's, and by nobody
/// else's links.
#[test]
fn what_another_user_put_into_a_home_is_refused() {
    if !rustix::process::getuid().is_root() {
        // Nothing can be given to another user; `make test` runs this as root in the emulated host.
        return;
    }
    let home = Home::new();
    let good = home.path().join("good");
    std::fs::create_dir(&good).unwrap();
    std::fs::write(good.join("config.toml"), "cpus = 1\n").unwrap();
    let give = |path: &Path| std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    for name in ["cache", "config", "data"] {
        let place = home.path().join(name);
        let refused = |what: &str| {
            let done = home.nelly(&["run", "--rm", "--dry-run", "--", "true"]);
            done.expect(125);
            assert!(done.out().is_empty(), "{name}: {what}: {}", done.out());
            let said = format!("{} belongs to user {NOBODY}", place.display());
            assert!(done.err().contains(&said), "{name}: {what}: {}", done.err());
        };
        let accepted = || home.nelly(&["run", "--rm", "--dry-run", "--", "true"]).expect(0).out();
        std::fs::create_dir(&place).unwrap();
        std::fs::copy(good.join("config.toml"), place.join("config.toml")).unwrap();
        accepted();
        give(&place);
        refused("a directory");
        std::fs::remove_dir_all(&place).unwrap();
        // A link of one's own is as good as what it leads to.
        std::os::unix::fs::symlink(&good, &place).unwrap();
        accepted();
        give(&place);
        refused("a planted link");
        std::fs::remove_file(&place).unwrap();
    }
    // Below them no link is followed at all.
    let outside = home.path().join("outside");
    std::fs::write(&outside, "").unwrap();
    let cache = home.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    std::os::unix::fs::symlink(&outside, cache.join("version")).unwrap();
    let done = home.nelly(&["run", "--rm", "--", "true"]);
    assert!(done.expect(125).err().contains("version is not a regular file"), "{}", done.err());
    assert_eq!(std::fs::read(&outside).unwrap(), b"");
}

//! Directories and files of the host in a container, as an ordinary user has them: what each side
//! writes, the other reads; what is read-only stays as it is; nothing leads out.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nelly_tests::{Done, run, top};
use serde_json::Value;

use super::keeper::Kept;
use super::user::nelly_as_nobody;
use super::{Home, LIMIT};

/// User and group that own nothing.
const NOBODY: u32 = 65534;

/// Whether the tests run as root, who becomes nobody here.
fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// A home of an ordinary user, with directories to share beside Nelly's own.
pub(crate) struct User(Kept);

impl User {
    pub(crate) fn new() -> Self {
        let user = Self(Kept::new());
        fs::set_permissions(user.path(), fs::Permissions::from_mode(0o755)).unwrap();
        user.give(Path::new(""));
        user
    }

    fn path(&self) -> &Path {
        self.0.0.path()
    }

    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Gives what the test made to the user.
    fn give(&self, name: &Path) {
        if is_root() {
            chown(self.at(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    pub(crate) fn directory(&self, name: &str) {
        fs::create_dir_all(self.at(name)).unwrap();
        self.give(Path::new(name));
    }

    pub(crate) fn file(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.at(name), contents).unwrap();
        self.give(Path::new(name));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }

    /// `nelly WORDS` as this user.
    #[track_caller]
    pub(crate) fn nelly(&self, words: &[&str]) -> Done {
        match is_root() {
            true => nelly_as_nobody(self.path(), true, words),
            false => self.0.0.nelly(words),
        }
    }

    #[track_caller]
    pub(crate) fn exec(&self, script: &str) -> String {
        let done = self.nelly(&["exec", "box", "sh", "-c", script]);
        done.expect(0).out().trim_end().to_owned()
    }

    /// `HOST:PATH` of something in this home.
    pub(crate) fn mount(&self, name: &str, rest: &str) -> String {
        format!("{}:{rest}", self.at(name).display())
    }
}

fn sum(path: &Path) -> String {
    run(Command::new("md5sum").arg(path), b"", LIMIT).expect(0).out()[..32].to_owned()
}

/// The path as one from the current directory: `../../tmp/x`.
fn relative(path: &Path) -> String {
    let here = std::env::current_dir().unwrap();
    let up = "../".repeat(here.components().count() - 1);
    format!("{up}{}", path.strip_prefix("/").unwrap().display())
}

#[test]
fn directories_and_files_of_the_host_are_shared_both_ways_and_nothing_beside_them() {
    let user = User::new();
    for directory in ["tree", "tree/many", "fixed", "beside", "lost"] {
        user.directory(directory);
    }
    let much: Vec<u8> = (0..32u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    user.file("tree/much", &much);
    user.file("tree/live", "one");
    user.file("fixed/kept", "as it was");
    user.file("lost/here", "here");
    user.file("beside/secret", "of the host");
    user.file("beside/single", "single");
    symlink(user.at("beside/secret"), user.at("tree/out")).unwrap();
    symlink("../beside", user.at("tree/up")).unwrap();
    symlink("/", user.at("tree/root")).unwrap();
    // What watches, as programs do that build anew when somebody saves a file.
    user.directory("tree/watched");
    fs::copy(top().join("target/nelly/tests/guest-look"), user.at("tree/guest-look")).expect("it is built");
    let first = "/work/guest-look --watch /work/watched /made/here >/tmp/told & exec sleep 100000";
    let bind = format!("type=bind,source={},target=/lost", user.at("lost").display());
    let words = [
        "run",
        "-d",
        "--name",
        "box",
        "--privileged",
        "-v",
        &user.mount("tree", "/work"),
        "-v",
        &format!("{}:/made/here:ro", relative(&user.at("fixed"))),
        "-v",
        &user.mount("beside/single", "/etc/single.conf"),
        "--mount",
        &bind,
        "--",
        "sh",
        "-c",
        first,
    ];
    user.nelly(&words).expect(0);

    // 32 MiB each way.
    let out = user.exec(
        "set -e; md5sum /work/much; dd if=/dev/urandom of=/work/back bs=1M count=32 2>/dev/null; md5sum /work/back",
    );
    let seen: Vec<_> = out.lines().map(|line| &line[..32]).collect();
    assert_eq!(seen, [sum(&user.at("tree/much")), sum(&user.at("tree/back"))]);
    assert_eq!(user.at("tree/back").metadata().unwrap().len(), 32 << 20);
    // Many small ones.
    user.exec("cd /work/many; i=0; while [ $i -lt 300 ]; do echo $i >$i; i=$((i+1)); done");
    assert_eq!(fs::read_dir(user.at("tree/many")).unwrap().count(), 300);
    assert_eq!(user.read("tree/many/299"), "299\n");
    user.file("tree/many/host", "");
    let listed = user.exec(
        "cd /work/many; ls | sort -u | wc -l; cat * | wc -l; rm -r /work/many; ls /work/many 2>&1 || true",
    );
    assert!(listed.starts_with("301\n300\n") && listed.contains("No such file"), "{listed}");
    assert!(!user.at("tree/many").exists());

    // What the host changes is seen at the next open.
    assert_eq!(user.exec("cat /work/live"), "one");
    user.file("tree/live", "two");
    assert_eq!(user.exec("until [ \"$(cat /work/live)\" = two ]; do :; done; echo seen"), "seen");
    user.file("tree/new", "three");
    fs::rename(user.at("tree/new"), user.at("tree/live")).unwrap();
    assert_eq!(user.exec("until [ \"$(cat /work/live)\" = three ]; do :; done; echo seen"), "seen");

    // And whoever watches is told, also of what is read-only, but not of what the guest does
    // itself.
    user.exec("until [ -e /tmp/watching ]; do sleep 0.1; done; echo guest >/work/watched/own");
    let own = user.exec("sleep 1; cat /tmp/told");
    assert!(own.contains("other own") && !own.contains("attrib"), "{own}");
    user.file("tree/watched/own", "host");
    user.file("fixed/later", "");
    user.file("tree/watched/new", "");
    let told = user.exec(
        "for name in own later new; do until grep -q \"attrib $name\" /tmp/told; do sleep 0.1; done; done; cat /work/watched/own",
    );
    assert_eq!(told, "host");
    fs::remove_file(user.at("fixed/later")).unwrap();

    // A file that lost its name is used as before.
    let held = user.exec(
        "cd /work; exec 3>held 4<held; echo before >&3; mv held moved; echo moved >&3; rm moved; echo after >&3; cat <&4",
    );
    assert_eq!(held, "before\nmoved\nafter");
    assert!(!user.at("tree/moved").exists() && !user.at("tree/held").exists());

    // Owners and modes are those that the guest set, and the host's user has the files.
    let made = "cd /work; echo x >own; chown 1234:5678 own; chmod 4711 own; stat -c '%u %g %a' own; stat -c '%u %g' much";
    assert_eq!(user.exec(made), "1234 5678 4711\n0 0");
    let own = user.at("tree/own").metadata().unwrap();
    let me = if is_root() { NOBODY } else { rustix::process::getuid().as_raw() };
    assert_eq!((own.uid(), own.mode() & 0o7022), (me, 0), "no bit that means something on the host");

    // Links are the guest's: none is followed on the host.
    let links = user.exec(
        "cd /work; cat out 2>&1; cat up/secret 2>&1; ls root/made; readlink out; ln -s /etc/shadow mine; ls -l mine | grep -c shadow",
    );
    let secret = user.at("beside/secret");
    assert!(!links.contains("of the host") && links.matches("No such file").count() == 2, "{links}");
    assert!(links.ends_with(&format!("here\n{}\n1", secret.display())), "{links}");
    assert_eq!(fs::read_link(user.at("tree/mine")).unwrap(), Path::new("/etc/shadow"));

    // A single file, without what lies beside it.
    let single =
        user.exec("cat /etc/single.conf; echo changed >/etc/single.conf; ls /etc/secret 2>&1 | grep -c No");
    assert_eq!((single.as_str(), user.read("beside/single").as_str()), ("single1", "changed\n"));

    // Read-only is the monitor's word, whatever the guest mounts.
    let fixed = user.exec(
        "cd /made/here; touch x 2>&1; mount -o remount,rw,bind /made/here; mkdir -p /mnt; mount -t virtiofs share1 /mnt && mount -o remount,rw /mnt && cd /mnt; \
         grep -c ' /mnt virtiofs rw' /proc/mounts; touch x 2>&1; echo y >kept; rm kept 2>&1; chmod 777 kept 2>&1; cat kept",
    );
    assert!(fixed.contains("\n1\n") && fixed.matches("Read-only file system").count() >= 3, "{fixed}");
    assert!(fixed.ends_with("as it was"), "{fixed}");
    assert_eq!(fs::read_dir(user.at("fixed")).unwrap().count(), 1);
    assert_eq!(user.read("fixed/kept"), "as it was");

    // One that is removed on the host takes nothing else along.
    assert_eq!(user.exec("cat /lost/here"), "here");
    fs::remove_dir_all(user.at("lost")).unwrap();
    let lost = user.exec("until ! cat /lost/here >/dev/null 2>&1; do :; done; touch /lost/x 2>/dev/null || echo gone; cat /work/live");
    assert_eq!(lost, "gone\nthree");

    let shown: Value = serde_json::from_str(&user.nelly(&["inspect", "box"]).expect(0).out()).unwrap();
    let shares = shown[0]["container"]["options"]["shares"].as_array().unwrap();
    assert_eq!(shares.len(), 4);
    let confinement = &shown[0]["monitor"]["confinement"];
    assert!(confinement["landlock"].as_u64() > Some(1) && confinement["seccomp"] == true, "{confinement}");
    assert_eq!(shares[1]["source"], user.at("fixed").canonicalize().unwrap().to_str().unwrap());
    assert_eq!((&shares[1]["read_only"], &shares[2]["file"]), (&true.into(), &true.into()));
    let further = user.nelly(&["run", "--in", "box", "-v", &user.mount("tree", "/x"), "--", "true"]);
    assert!(further.expect(125).err().contains("was made with the directories"), "{}", further.err());

    // A start opens them anew, and says what is gone.
    user.nelly(&["stop", "-t", "1s", "box"]).expect(0);
    let refused = user.nelly(&["start", "box"]);
    assert!(
        refused.code != 0 && refused.err().contains("lost: it is not there any more"),
        "{}",
        refused.err()
    );
    user.directory("lost");
    user.nelly(&["start", "box"]).expect(0);
    assert_eq!(user.exec("ls /lost | wc -l; stat -c '%u %g %a' /work/own"), "0\n1234 5678 4711");
    user.nelly(&["rm", "-f", "box"]).expect(0);
}

/// Before there is a machine: each with a sentence that says what to do.
#[test]
fn what_cannot_be_shared_is_refused_before_anything_starts() {
    let home = Home::new();
    fs::create_dir(home.path().join("tree")).unwrap();
    fs::create_dir_all(home.path().join("data/images")).unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    let many: Vec<String> = (0..33).map(|n| format!("{}:/{n}", at("tree"))).collect();
    let many: Vec<&str> = many.iter().flat_map(|one| ["-v", one]).collect();
    let (missing, whole, images) =
        (format!("{}:/x", at("none")), format!("{}:/x", at("")), format!("{}:/x", at("data/images")));
    let twice = format!("{}:/data", at("tree"));
    for (flags, words) in [
        (&["-v", &missing][..], "mkdir -p"),
        (&["-v", "/dev/null:/x"], "a directory or a regular file is needed"),
        (&["-v", "/:/x"], "Nelly's own files"),
        (&["-v", &whole], "Nelly's own files"),
        (&["-v", &images], "Nelly's own files"),
        (&["-v", &twice, "-v", "data:/data"], "something else is mounted"),
        (&["-v", "tree/x:/data"], "begins with / or ./"),
        (&many, "at most 32"),
    ] {
        let refused = home.nelly(&[&["create"], flags, &["--", "true"]].concat());
        assert!(refused.code != 0 && refused.err().contains(words), "{flags:?}: {}", refused.err());
    }
    let boot = home.nelly(&["boot", "--kernel", nelly_tests::kernel().to_str().unwrap(), "--share", "tree"]);
    assert!(boot.code != 0 && boot.err().contains("TAG=DIRECTORY"), "{}", boot.err());
    assert!(home.nelly(&["ps", "-aq"]).expect(0).out().is_empty());
}

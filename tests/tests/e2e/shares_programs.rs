//! What programs of a Debian do with a shared directory that is more than reading and writing: apt
//! and dpkg, which rename, link and lock, and SQLite, which maps files as well.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nelly_tests::{run, top};

use super::LIMIT;
use super::network::sh;
use super::shares::User;

/// Two versions of a package, with what packages have that plain files are not, in an archive of
/// its own.
const ARCHIVE: &str = r#"
mkdir archive little
cd little
mkdir -p DEBIAN etc usr/bin usr/lib/little usr/share/little/many var/spool/little
echo /etc/little.conf >DEBIAN/conffiles
cat >DEBIAN/postinst <<'POSTINST'
#!/bin/sh
set -e
cd "$DPKG_ROOT/"
chown 33:34 var/spool/little usr/lib/little/helper
chmod 6755 usr/lib/little/helper
POSTINST
chmod 755 DEBIAN/postinst
ln -s little usr/bin/alias
echo linked >usr/share/little/one
ln usr/share/little/one usr/share/little/two
chmod 1777 var/spool/little
for version in 1.0 2.0; do
  printf 'Package: little\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@www.example>\nDescription: a test\n' $version >DEBIAN/control
  printf '#!/bin/sh\necho version %s\n' $version | tee usr/bin/little >usr/lib/little/helper
  chmod 755 usr/bin/little usr/lib/little/helper
  echo "of $version" >etc/little.conf
  for number in $(seq 60); do echo $version $number >usr/share/little/many/$number; done
  package=../archive/little_$version.deb
  dpkg-deb --root-owner-group -Zgzip --build . $package
  { cat DEBIAN/control; echo Filename: ./little_$version.deb; echo Size: $(stat -c %s $package)
    echo SHA256: $(sha256sum <$package | cut -d ' ' -f 1); echo; } >>../archive/Packages
done
"#;

/// Installs, upgrades and removes that package below `$ROOT`, and tells what is there in between.
/// The programs are those of the container.
const INSTALL: &str = r#"
set -e
mkdir -p $ROOT/etc/apt/apt.conf.d $ROOT/etc/apt/preferences.d $ROOT/var/lib/dpkg $ROOT/var/lib/apt/lists/partial \
  $ROOT/var/cache/apt/archives/partial $ROOT/var/log/apt
cd $ROOT
: >var/lib/dpkg/status
echo 'deb [trusted=yes] file:/work/archive ./' >etc/apt/sources.list
apt() {
  apt-get -q -y -o Dir=$ROOT -o Dir::State::status=$ROOT/var/lib/dpkg/status -o DPkg::Options::=--root=$ROOT \
    -o DPkg::Options::=--force-script-chrootless -o DPkg::Options::=--force-confold "$@" >>/tmp/apt.log 2>&1 || { cat /tmp/apt.log; exit 1; }
}
apt update
apt install little=1.0
echo edited >>etc/little.conf
# The old file stays what it is for who has it open, and can be linked no more.
exec 3<usr/bin/little
apt install little
echo held $(tail -n 1 <&3) links $(stat -L -c %h /proc/self/fd/3)
exec 3<&-
usr/bin/alias
dpkg --root=$ROOT --verify little
find . -name '*.dpkg-*' | sort
find etc usr var/spool ! -type d -printf '%p %y %m %U:%G %n %s %l\n' | sort
find etc usr var/spool -type d -printf '%p %m %U:%G\n' | sort
cat $(find usr/share etc/little* -type f | sort) | md5sum
apt purge little
find etc usr var/spool | sort
"#;

/// Processes that write at the same time, and one that reads beside a writer's transaction.
const DATABASES: &str = r#"
set -e
for mode in delete wal; do
  db=/work/$mode.db
  sqlite3 $db "pragma journal_mode=$mode; create table t(writer, n);" >/dev/null
  for writer in 1 2 3; do
    { echo .timeout 100000; for n in $(seq 12); do echo "insert into t values($writer, $n);"; done; } | sqlite3 $db &
  done
  wait
  echo $mode $(sqlite3 $db 'pragma journal_mode; select count(*), count(distinct writer * 100 + n) from t; pragma integrity_check')
done
sqlite3 /work/wal.db <<'SQL'
begin immediate;
insert into t values(4, 1);
.shell echo beside: $(sqlite3 /work/wal.db 'select count(*) from t') $(sqlite3 /work/wal.db 'insert into t values(5, 1)' 2>&1)
.shell ls /work | grep wal.db- | xargs
commit;
SQL
"#;

/// Has the whole of a database mapped, and reads it again and again.
const MAPPED: &str = r#"
{
  echo 'pragma mmap_size=268435456; begin; select count(*) from t where length(x) > 0;'
  echo '.shell touch /work/mapped'
  for again in $(seq 300); do sleep 0.1; echo 'select count(*) from t where length(x) > 0;' || break; done
} | sqlite3 /work/cut.db >/tmp/rows 2>&1
echo ended $? after $(uniq /tmp/rows | xargs)
"#;

#[test]
fn packages_and_databases_live_in_a_shared_directory() {
    let user = User::new();
    user.directory("tree");
    user.directory("tree/root");
    sh(&format!("cd {}; {ARCHIVE} chmod -R a+rX ../archive", user.at("tree").display()));
    let made = run(&mut Command::new(top().join("tests/images/world")), b"", LIMIT).expect(0).out();
    let image = user.at("image");
    sh(&format!("cp -R {} {image}; chmod -R a+rX {image}", made.trim(), image = image.display()));
    let image = format!("oci:{}:v1", image.display());
    let share = user.mount("tree", "/work");
    user.nelly(&["run", "-d", "--name", "box", "--net", "none", "-v", &share, &image, "sleep", "100000"])
        .expect(0);

    // apt and dpkg leave the same in a share as on the container's own disk.
    let own = user.exec(&format!("ROOT=/own; {INSTALL}"));
    let shared = user.exec(&format!("ROOT=/work/root; {INSTALL}"));
    assert_eq!(shared, own);
    for line in [
        "held echo version 1.0 links 0",
        "version 2.0",
        "??5?????? c /etc/little.conf",
        "./etc/little.conf.dpkg-dist",
        "usr/lib/little/helper f 6755 33:34 1 27 ",
        "usr/bin/alias l 777 0:0 1 6 little",
        "usr/share/little/one f 644 0:0 2 7 ",
        "var/spool/little 1777 33:34",
    ] {
        assert!(shared.lines().any(|it| it.trim_end() == line.trim_end()), "{line}: {shared}");
    }
    assert!(!shared.ends_with("etc/little.conf"), "purged: {shared}");
    // What is left is the host's user's, with no bit that means something here.
    let files = run(Command::new("find").arg(user.at("tree/root")), b"", LIMIT).expect(0).out();
    let me = user.at("tree/root").metadata().unwrap().uid();
    for file in files.lines() {
        let metadata = fs::symlink_metadata(file).unwrap();
        let meant = if metadata.is_symlink() { 0 } else { metadata.mode() & 0o7002 };
        assert_eq!((metadata.uid(), meant), (me, 0), "{file}");
    }
    assert!(files.contains("var/lib/dpkg/status-old") && files.contains("var/lib/apt/extended_states"));

    // SQLite, with a journal and with a log that it maps.
    let said = user.exec(DATABASES);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..2], ["delete delete 36|36 ok", "wal wal 36|36 ok"], "{said}");
    assert!(lines[2].starts_with("beside: 36 ") && lines[2].contains("database is locked"), "{said}");
    assert_eq!(lines[3], "wal.db-shm wal.db-wal", "{said}");
    let sql = "import sqlite3, sys
for line in sys.argv[2:]:
    print(*sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute(line).fetchone() or ['done'])";
    let host = |name: &str, lines: &[&str]| {
        let mut python = Command::new("python3");
        python.args(["-c", sql]).arg(user.at(name)).args(lines);
        run(&mut python, b"", LIMIT).expect(0).out()
    };
    let all = ["pragma integrity_check", "select count(*) from t"];
    assert_eq!(host("tree/delete.db", &all), "ok\n36\n");
    assert_eq!(host("tree/wal.db", &all), "ok\n37\n");
    // The guest's locks are its own: this host's programs do not see them.
    let hold =
        "begin exclusive;\n.shell touch /work/held; until [ -e /work/seen ]; do sleep 0.1; done\ncommit;";
    let script = format!("sqlite3 /work/delete.db <<'SQL'\n{hold}\nSQL\necho let go");
    let there = |name: &str| {
        let limit = Instant::now() + LIMIT;
        while !user.at(name).exists() {
            assert!(Instant::now() < limit, "no {name}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    std::thread::scope(|scope| {
        let held = scope.spawn(|| user.exec(&script));
        there("tree/held");
        assert_eq!(host("tree/delete.db", &["begin exclusive"]), "done\n");
        user.file("tree/seen", "");
        assert_eq!(held.join().unwrap(), "let go");
    });

    // This host cuts a file that is mapped in the guest: who touches what is gone is ended there.
    let fill = "create table t(x); with recursive n(i) as (select 1 union all select i + 1 from n where i < 400) \
                insert into t select hex(randomblob(1000)) from n";
    user.exec(&format!("sqlite3 /work/cut.db '{fill}'"));
    let whole = fs::read(user.at("tree/cut.db")).unwrap();
    assert!(whole.len() > 800_000, "{}", whole.len());
    std::thread::scope(|scope| {
        let mapped = scope.spawn(|| user.exec(MAPPED));
        there("tree/mapped");
        fs::File::options().write(true).open(user.at("tree/cut.db")).unwrap().set_len(0).unwrap();
        let said = mapped.join().unwrap();
        assert!(said.starts_with("ended 135 after 268435456 400"), "by SIGBUS (7): {said}");
    });
    fs::write(user.at("tree/cut.db"), &whole).unwrap();
    assert_eq!(user.exec("sqlite3 /work/cut.db 'pragma integrity_check; select count(*) from t'"), "ok\n400");
    user.nelly(&["rm", "-f", "box"]).expect(0);
}

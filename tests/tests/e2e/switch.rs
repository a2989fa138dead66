//! Networks of machines, of an ordinary user.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nelly_tests::{nelly, scaled, top};
use serde_json::Value;

use super::keeper::{Kept, kill};
use super::{Home, LIMIT};

/// Busybox, getent, which tells all addresses of a name, and the libraries that it needs.
fn image(top: &Path) -> String {
    let script = r#"
        mkdir -p "$1"/bin "$1"/usr/bin "$1"/etc "$1"/tmp "$1"/proc "$1"/dev "$1"/sys
        cp "$(command -v busybox)" "$1"/bin/busybox
        cp "$(command -v getent)" "$1"/usr/bin/getent
        for name in sh ping nc ip cat sleep ls httpd; do ln -s busybox "$1"/bin/$name; done
        echo 'hosts: files dns' >"$1"/etc/nsswitch.conf
        ldd "$(command -v getent)" | grep -o '/[^ ]*' | while read -r file; do
            mkdir -p "$1/${file%/*}"
            cp "$file" "$1$file"
        done"#;
    let image = top.join("image");
    let done = Command::new("sh").args(["-euc", script, "sh"]).arg(&image).output().expect("sh");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    format!("rootfs:{}", image.display())
}

/// Machines of a home.
struct Machines {
    kept: Kept,
    image: String,
}

impl Machines {
    /// A machine that stays, called `name`.
    fn start(&self, name: &str, flags: &[&str]) {
        let script = format!("({SERVE}) & exec sleep 1000");
        let command = [self.image.as_str(), "sh", "-c", &script];
        let words = [&["run", "-d", "--memory", "128M", "--name", name], flags, &command[..]].concat();
        self.kept.out(&words);
    }

    fn exec(&self, name: &str, script: &str) -> String {
        self.kept.out(&["exec", name, "sh", "-c", script])
    }

    fn inspect(&self, network: &str) -> Value {
        serde_json::from_str::<Value>(&self.kept.out(&["network", "inspect", network])).expect("JSON")[0]
            .clone()
    }

    fn address(&self, name: &str, field: &str) -> String {
        let text = self.kept.out(&["inspect", name]);
        let shown: Value = serde_json::from_str(&text).expect("JSON");
        let place = &shown[0]["machine"]["network"]["member"]["place"];
        place[field].as_str().unwrap_or_else(|| panic!("no {field} in {place}")).to_owned()
    }

    /// Waits until a script in a machine prints this.
    #[track_caller]
    fn until(&self, name: &str, script: &str, said: &str) {
        let limit = Instant::now() + scaled(LIMIT);
        loop {
            let heard = self.exec(name, script);
            if heard == said {
                return;
            }
            assert!(Instant::now() < limit, "{script} in {name} says {heard:?}, and never {said:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Says its name to whoever calls.
const SERVE: &str = "while :; do cat /proc/sys/kernel/hostname | nc -l -p 7000; done";

/// Whether an address answers pings.
fn ping(address: &str) -> String {
    format!("ping -c 1 -W 3 {address} >/dev/null 2>&1 && echo yes || echo no")
}

/// The processes whose command line has this.
fn processes(part: &str) -> Vec<u64> {
    let found = Command::new("pgrep").args(["-f", part]).output().expect("pgrep");
    String::from_utf8_lossy(&found.stdout).lines().filter_map(|line| line.parse().ok()).collect()
}

/// Runs what README's session does with a network, word for word, and takes it away again.
fn as_the_readme_has_it(kept: &Kept) {
    let readme = fs::read_to_string(top().join("README.md")).expect("README.md");
    let mut lines = readme.lines().filter_map(|line| line.strip_prefix("$ "));
    let create = lines.find(|line| line.starts_with("nelly network create")).expect("it makes a network");
    let run = lines.next().expect("and then machines");
    assert!(run.contains("--network"), "{run}");
    let nelly = nelly(kept.0.path(), &[]);
    let path = Path::new(nelly.get_program()).parent().expect("a directory").to_owned();
    let path = format!("{}:{}", path.display(), std::env::var("PATH").expect("a path"));
    let mut shell = Command::new("sh");
    shell.args(["-ec", &format!("{create}\n{run}")]).env("PATH", path);
    for (name, value) in nelly.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    kept.0.run(&mut shell, b"").expect(0);
    let shown: Value = serde_json::from_str(&kept.out(&["network", "inspect", "dev"])).expect("JSON");
    assert_eq!(
        (&shown[0]["machines"][0]["name"], &shown[0]["machines"][0]["joined"]),
        (&"db".into(), &true.into())
    );
    kept.out(&["rm", "-f", "db"]);
    kept.out(&["network", "rm", "dev"]);
}

#[test]
fn machines_on_a_network_reach_each_other_by_name_and_no_others() {
    let kept = Kept::ordinary();
    let image = image(kept.0.path());
    let machines = Machines { kept, image };
    let home: &Home = &machines.kept.0;
    let refused = home.nelly(&["run", "--rm", "--network", "dev", "--", "true"]);
    assert!(refused.expect(125).err().contains("nelly network create dev"), "{}", refused.err());
    machines.kept.out(&["network", "create", "dev"]);
    machines.kept.out(&["network", "create", "--isolated", "--label", "stage=test", "lab"]);
    assert_eq!(machines.kept.out(&["network", "ls", "-q"]), "dev\nlab");
    assert_eq!(machines.kept.out(&["network", "ls", "-q", "--filter", "label=stage=test"]), "lab");

    machines.start("web", &["--network", "dev,alias=front"]);
    machines.start("db", &["--network", "dev", "--network-alias", "store"]);
    machines.start("else", &["--network", "lab"]);
    let db4 = machines.address("db", "address4");
    let (web4, web6) = (machines.address("web", "address4"), machines.address("web", "address6"));
    let else4 = machines.address("else", "address4");
    // By address: both families, and TCP.
    for (name, address, answer) in [
        ("db", &web4, "yes"),
        ("db", &web6, "yes"),
        ("web", &db4, "yes"),
        ("else", &web4, "no"),
        ("web", &else4, "no"),
    ] {
        machines.until(name, &ping(address), answer);
    }
    machines.until("db", &format!("nc -w 5 {web4} 7000 </dev/null"), "web");
    machines.until("web", &format!("nc -w 5 {db4} 7000 </dev/null"), "db");
    // By name and by alias.
    let ask = |name: &str| format!("getent ahostsv4 {name} | while read -r a b; do echo $a; break; done");
    for (name, address) in [("web", &web4), ("web.dev", &web4), ("front", &web4), ("store.dev", &db4)] {
        machines.until("db", &ask(name), address);
    }
    machines.until("db", "getent ahostsv6 web | while read -r a b; do echo $a; break; done", &web6);
    assert_eq!(machines.exec("else", &format!("{}; echo end", ask("web"))), "end");

    // One in the foreground is on it, too, at the address that it wants.
    let fixed = format!("{}.77", web4.rsplit_once('.').expect("an address").0);
    let network = format!("dev,ip={fixed}");
    let script = format!("{}; {}; ip -o addr show dev eth0", ping("web"), ping("db"));
    let done = home.nelly(&[
        "run",
        "--rm",
        "--memory",
        "128M",
        "--network",
        &network,
        &machines.image,
        "sh",
        "-c",
        &script,
    ]);
    let said = done.expect(0).out();
    assert!(said.starts_with("yes\nyes\n") && said.contains(&format!("inet {fixed}/24")), "{said}");
    let taken = home.nelly(&["create", "--network", &format!("dev,ip={web4}"), &machines.image, "true"]);
    assert!(taken.expect(1).err().contains("sandbox web"), "{}", taken.err());

    // The switch is killed: machines go on, and find each other again when they have started anew.
    let switches = processes("nelly-switch --serve --network dev");
    assert_eq!(switches.len(), 1, "{switches:?}");
    kill("KILL", switches[0]);
    machines.until("web", &ping(&db4), "no");
    let gateway = format!("{}.1", web4.rsplit_once('.').expect("an address").0);
    machines.until("web", &ping(&gateway), "yes");
    machines.kept.out(&["restart", "-t", "0", "web", "db"]);
    assert_eq!(machines.address("web", "address4"), web4);
    machines.until("db", &ping(&web4), "yes");
    machines.until("db", &ask("front"), &web4);
    let shown = machines.inspect("dev");
    let all = shown["machines"].as_array().expect("an array");
    assert!(all.len() == 2 && all.iter().all(|one| one["joined"] == true), "{shown:#}");
    assert!(all.iter().all(|one| one["counters"]["forged"] == 0), "{shown:#}");

    // A name is gone when its machine has stopped, and its address is kept.
    machines.kept.out(&["stop", "-t", "0", "web"]);
    machines.until("db", &format!("{}; echo end", ask("web")), "end");
    let refused = home.nelly(&["network", "rm", "dev"]);
    assert!(refused.expect(1).err().contains("sandboxes db, web"), "{}", refused.err());
    machines.kept.out(&["rm", "-f", "web", "db", "else"]);
    machines.kept.out(&["network", "rm", "dev", "lab"]);
    home.nelly(&["network", "rm", "dev"]).expect(1);
    machines.kept.out(&["network", "rm", "-f", "dev"]);
    assert_eq!(machines.kept.out(&["network", "ls", "-q"]), "");
    as_the_readme_has_it(&machines.kept);
    let limit = Instant::now() + scaled(LIMIT);
    let left = || fs::read_dir(home.path().join("run")).map_or(0, Iterator::count);
    while left() > 0 || !processes("nelly-switch --serve --network").is_empty() {
        assert!(Instant::now() < limit, "something is left");
        std::thread::sleep(Duration::from_millis(50));
    }
}

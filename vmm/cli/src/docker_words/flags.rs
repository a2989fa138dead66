//! Flags that users of docker and podman type, and that the verb does not have.

/// Verbs, flags of docker's verb of that name, and what is the case.
type Row = (&'static [&'static str], &'static [&'static str], &'static str);

const MAKE: &[&str] = &["run", "create"];
const OWN_NETWORK: &str =
    "each machine has a network of its own, or is on one of nelly network: see --net and -p";
const ADDRESSES: &str = "--network NAME,ip=ADDRESS says one on a network of machines, --net tap=NAME,ip=ADDRESS/BITS,mac=ADDRESS on a tap";
const ONE_BY_ONE: &str = "ports are published one by one: -p HOST:GUEST";
const NO_IO_LIMITS: &str = "there are no limits of input and output yet";
const WHOLE: &str = "a machine has whole vCPUs: --cpus N";
const ALONE: &str = "a container shares nothing with the host: each has a kernel of its own";
const IDS: &str = "it takes names and ids: nelly ps -q lists ids, and xargs -r passes them on";
const ONE_PLATFORM: &str = "only images for this host's platform can be used here";

/// The first row that fits is told. No verbs: the row is for all of them.
pub(super) const TABLE: &[Row] = &[
    // Containers and machines.
    (
        MAKE,
        &["--attach", "-a"],
        "without -d the container's output is always shown, and -i connects its input",
    ),
    (
        MAKE,
        &[
            "--blkio-weight",
            "--blkio-weight-device",
            "--device-read-bps",
            "--device-read-iops",
            "--device-write-bps",
            "--device-write-iops",
        ],
        NO_IO_LIMITS,
    ),
    (MAKE, &["--cgroup-parent", "--cgroupns", "--device-cgroup-rule"], ALONE),
    (MAKE, &["--cidfile"], "write --result FILE, or take the id that nelly run -d and nelly create print"),
    (MAKE, &["--cpu-shares", "-c", "--cpuset-cpus", "--cpuset-mems", "--cpu-period", "--cpu-quota"], WHOLE),
    (MAKE, &["--ip", "--ip6", "--mac-address"], ADDRESSES),
    (MAKE, &["--dns-option", "--expose", "--link"], OWN_NETWORK),
    (MAKE, &["--publish-all", "-P"], ONE_BY_ONE),
    (MAKE, &["--domainname"], "write --hostname NAME.DOMAIN"),
    (MAKE, &["--env-host"], "-e NAME without a value copies one variable of this environment"),
    (MAKE, &["--gpus"], "host devices cannot be passed to a machine yet"),
    (MAKE, &["--ipc", "--pid", "--uts"], ALONE),
    (
        MAKE,
        &["--isolation", "--runtime"],
        "each container has a machine of its own; there are no other runtimes",
    ),
    (MAKE, &["--label-file"], "write --label NAME=VALUE, once for each"),
    (MAKE, &["--log-driver", "--log-opt"], "the log is a file of the sandbox, which nelly logs reads"),
    (
        MAKE,
        &["--memory-swap", "--memory-swappiness", "--memory-reservation", "--kernel-memory"],
        "a machine has no swap; --memory is its memory",
    ),
    (
        MAKE,
        &["--oom-kill-disable", "--oom-score-adj"],
        "the guest's kernel decides within the machine's --memory",
    ),
    (MAKE, &["--pod"], "write --in SANDBOX to run beside the container of another sandbox"),
    (MAKE, &["--replace"], "remove the old sandbox first: nelly rm -f NAME"),
    (MAKE, &["--rootfs"], "name the directory as the image: rootfs:DIR"),
    (MAKE, &["--sig-proxy"], "signals are always passed on to the container"),
    (MAKE, &["--storage-opt"], "write --storage SIZE"),
    (MAKE, &["--tls-verify", "--authfile"], "registries have their settings in config.toml, and nelly login"),
    (MAKE, &["--tz"], "write -e TZ=ZONE"),
    (MAKE, &["--umask"], "write it into the command: sh -c 'umask 077; exec ...'"),
    (MAKE, &["--userns"], "user namespaces are not used: the machine is the boundary"),
    (MAKE, &["--volume-driver"], "a volume is a directory on the sandbox's own disk"),
    (MAKE, &["--volumes-from"], "a volume belongs to one sandbox; nelly cp copies between two"),
    // The life of sandboxes.
    (
        &["start"],
        &["--attach", "-a", "--interactive", "-i", "--detach-keys"],
        "write nelly start NAME && nelly attach NAME",
    ),
    (
        &["start", "stop", "restart", "kill", "pause", "unpause", "rm", "wait"],
        &["--all", "--latest", "-l"],
        IDS,
    ),
    (&["start", "rm", "stop"], &["-a"], IDS),
    (&["restart"], &["--signal", "-s"], "write nelly stop --signal SIGNAL NAME && nelly start NAME"),
    (&["rm"], &["--volumes", "-v"], "volumes belong to the sandbox and are always removed with it"),
    (&["rm", "stop"], &["--ignore", "-i"], "nelly rm -f takes a sandbox that is not there for removed"),
    (&["rm"], &["--time", "-t"], "write nelly stop -t TIME NAME && nelly rm NAME"),
    (&["rm"], &["--link"], OWN_NETWORK),
    (&["wait"], &["--condition"], "it waits until the sandboxes have ended"),
    (
        &["update"],
        &["--cpus", "--cpu-shares", "-c", "--cpuset-cpus", "--cpu-period", "--cpu-quota"],
        "the vCPUs of a machine are set by nelly run --cpus",
    ),
    (&["update"], &["--memory-swap", "--memory-reservation"], "a machine has no swap; --memory is the limit"),
    (&["update"], &["--pids-limit"], "it is set by nelly run --pids-limit"),
    (&["update"], &["--blkio-weight"], NO_IO_LIMITS),
    // Entering them.
    (&["exec"], &["--privileged"], "an exec has the rights of its container: nelly run --privileged"),
    (&["attach"], &["--sig-proxy"], "signals are always passed on to the container"),
    (&["attach"], &["--latest", "-l"], "nelly ps lists the newest sandbox first"),
    // Looking at them.
    (
        &["ps"],
        &["--last", "-n", "--latest", "-l"],
        "the newest sandbox is listed first: nelly ps -aq | head -n 1",
    ),
    (&["ps"], &["--size", "-s"], "nelly inspect shows the directory of a sandbox, which du measures"),
    (
        &["inspect", "image inspect"],
        &["--format", "-f"],
        "it always prints everything; write | jq '.[0].KEY'",
    ),
    (&["inspect"], &["--size", "-s"], "it shows the directory of a sandbox, which du measures"),
    (&["inspect"], &["--type"], "for images there is nelly image inspect"),
    (&["inspect"], &["--json"], "its output is always JSON"),
    (&["logs"], &["--details"], "nelly inspect shows the labels of a sandbox"),
    (&["logs"], &["--until"], "write -t, which prints the time of each line, and stop reading there"),
    (&["stats"], &["--no-stream"], "it always prints once; `watch nelly stats` repeats it"),
    (&["stats"], &["--all", "-a", "--no-trunc"], "it shows the sandboxes that run; nelly ps -a lists all"),
    (
        &["top"],
        &["-o", "-e", "-f", "aux", "-ef"],
        "it has always the same columns; nelly exec NAME ps gives others",
    ),
    // Images.
    (&["image ls"], &["--all", "-a"], "it always lists all images"),
    (&["image ls"], &["--digests"], "--no-trunc prints whole ids, which are digests"),
    (&["image ls"], &["--tree"], "nelly image inspect shows the layers of an image"),
    (&["image pull", "image push"], &["--all-tags", "-a"], "name each image with its tag"),
    (&["image push", "image save", "image load", "image rm", "image inspect"], &["--platform"], ONE_PLATFORM),
    (
        &["image pull", "image push", "login", "logout"],
        &["--tls-verify", "--authfile", "--creds", "--cert-dir"],
        "registries have their settings in config.toml, and nelly login",
    ),
    (&["image prune"], &["--force", "-f"], "it asks no question"),
    (
        &["image prune"],
        &["--filter"],
        "nelly image ls --filter lists images, and nelly image rm removes them",
    ),
    (&["image rm"], &["--no-prune"], "what no other image needs is always removed"),
    (&["image rm"], &["--all", "-a"], "nelly image prune -a removes every image that no sandbox uses"),
    (&["image history"], &["--human", "-H", "--quiet", "-q"], "--json has numbers and whole digests"),
    (
        &["login"],
        &["--password", "-p"],
        "other users could read a password there: it is asked for, or read with --password-stdin",
    ),
    (&["logout"], &["--all", "-a"], "name each registry"),
    // All verbs, and none.
    (&[""], &["-v"], "write nelly version"),
    (
        &[""],
        &["--debug", "-D", "--log-level", "-l"],
        "write it after the verb: nelly run --log-level debug, or set NELLY_LOG",
    ),
    (&[""], &["--host", "-H", "--context", "-c"], "there is no daemon that it could name"),
    (&[""], &["--config"], "NELLY_HOME=DIR moves the configuration, too; nelly config show prints its place"),
    (&[], &["--format"], "there is no template language; where a verb has --json, write --json | jq"),
    (&[], &["--disable-content-trust"], "every blob is checked against its digest"),
];

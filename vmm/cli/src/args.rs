//! The command line. Nelly's flags end at IMAGE; everything after it is the command.

use std::path::PathBuf;

use clap::{Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::boot_args::BootArgs;
use crate::life::args::{
    AttachArgs, CpArgs, EventsArgs, ExecArgs, KillArgs, LogsArgs, LookArgs, MetricsArgs, NamesArgs,
    ProxyArgs, PsArgs, RenameArgs, RestartArgs, RmArgs, StartArgs, StatsArgs, StopArgs, UpdateArgs, WaitArgs,
};
use crate::machine_args::MachineArgs;
use crate::network_args::NetworkArgs;

/// The parsed command line.
#[derive(Debug, Parser)]
#[command(
    name = "nelly",
    version,
    about = "Run a container, or boot a kernel, in its own microVM",
    disable_help_subcommand = true,
    propagate_version = false,
    after_help = "Examples:\n  \
        nelly run --rm -- sh -c 'uname -a; id'         the built-in image\n  \
        nelly run --rm -it oci:./image sh              a shell in an OCI layout\n  \
        echo hi | nelly run --rm -i docker-archive:app.tar cat\n  \
        nelly run -d --name web oci:./image             in the background: nelly exec, attach, stop\n  \
        nelly boot --kernel bzImage --initrd initrd.img --append 'console=ttyS0'\n  \
        nelly boot --image debian.qcow2 -m 1G          a cloud image, without firmware\n  \
        nelly boot -d --name vm --image debian.qcow2,size=20G -m 1G   in the background: nelly attach, stop, start\n  \
        nelly isolated                                 a cloud image, by the variables of the Hydra scripts\n  \
        nelly doctor                                   what this host can do\n\n\
        Exit codes: nelly help exit-codes"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The description of `run`.
const RUN: &str = "Run a command in a container in a new microVM";

impl Cli {
    /// Parses the command line, which begins with the program's name. For `run`, the flags of the
    /// other verbs are not built, because that would take as long as parsing and would delay every
    /// start.
    ///
    /// # Errors
    /// Invalid arguments; also if help or the version was requested.
    pub(crate) fn from_words(raw: &[String]) -> Result<Self, clap::Error> {
        let Some(words) = raw.get(2..).filter(|_| raw.get(1).is_some_and(|verb| verb == "run")) else {
            return match signal_alone(raw) {
                Some(raw) => Self::try_parse_from(raw),
                None => Self::try_parse_from(raw),
            };
        };
        let mut command = run_alone();
        let words = std::iter::once("nelly run").chain(words.iter().map(String::as_str));
        let mut matches = command.try_get_matches_from_mut(words)?;
        let args = RunArgs::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
        Ok(Self { verb: Verb::Run(Box::new(args)) })
    }
}

/// `nelly kill -9` as `nelly kill --signal=9`, which clap has no form for; `None` where no signal
/// stands alone. No flag of `kill` is in upper case or a number.
fn signal_alone(raw: &[String]) -> Option<Vec<String>> {
    if raw.get(1).is_none_or(|verb| verb != "kill") {
        return None;
    }
    let end = raw.iter().position(|word| word == "--").unwrap_or(raw.len());
    let signal = |word: &str| {
        let name = word.strip_prefix('-')?;
        let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
        fits.then(|| format!("--signal={name}"))
    };
    let at = raw[..end].iter().position(|word| signal(word).is_some())?;
    let mut raw = raw.to_vec();
    raw[at] = signal(&raw[at])?;
    Some(raw)
}

/// The parser of `run` without the other verbs.
fn run_alone() -> Command {
    RunArgs::augment_args(Command::new("nelly run")).about(RUN)
}

/// The verbs of `nelly`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    #[command(about = RUN)]
    Run(Box<RunArgs>),
    /// Make a sandbox that stays, without starting it
    #[command(
        override_usage = "nelly create [FLAGS] IMAGE [COMMAND [ARG...]]\n       nelly create [FLAGS] -- COMMAND [ARG...]",
        after_help = "Prints the id. `nelly start` starts the sandbox. IMAGE and COMMAND are those of nelly run.\n\n\
            Examples:\n  \
            nelly create --name web -m 256M -- httpd -f && nelly start web\n  \
            nelly create --restart unless-stopped --storage 20G --name db postgres:17",
        mut_arg("detach", |arg| arg.hide(true)), mut_arg("timeout", |arg| arg.hide(true)), mut_arg("result", |arg| arg.hide(true)),
        mut_arg("timings", |arg| arg.hide(true)), mut_arg("trace", |arg| arg.hide(true)), mut_arg("inside", |arg| arg.hide(true)),
        mut_arg("detach_keys", |arg| arg.hide(true))
    )]
    Create(Box<RunArgs>),
    /// Start sandboxes that do not run
    Start(StartArgs),
    /// Stop sandboxes: a signal or the power button, a grace time, SIGKILL
    Stop(StopArgs),
    /// Send a signal to the first process of sandboxes, or end machines of nelly boot
    Kill(KillArgs),
    /// Stop sandboxes, and start them again
    Restart(RestartArgs),
    /// Wait until sandboxes have ended, and print their exit codes; or until an agent answers
    #[command(after_help = "Example:\n  code=$(nelly wait job) && nelly logs job")]
    Wait(WaitArgs),
    /// Run a further command in a sandbox that runs
    Exec(ExecArgs),
    /// Show a sandbox's output, and type into it
    Attach(AttachArgs),
    /// Pause the machines of sandboxes
    #[command(after_help = "Example:\n  nelly pause web db")]
    Pause(NamesArgs),
    /// Let paused sandboxes run on
    #[command(after_help = "Example:\n  nelly unpause web db")]
    Unpause(NamesArgs),
    /// Change the restart policy or the memory limit of sandboxes
    Update(UpdateArgs),
    /// Print the resource use of sandboxes that run
    Stats(StatsArgs),
    /// Print what machines count, as Prometheus reads it
    Metrics(MetricsArgs),
    /// Copy files into a sandbox that runs, or out of it
    Cp(CpArgs),
    /// List the processes of a sandbox that runs
    #[command(
        after_help = "PID and PPID are the container's own numbers, USER is the number of the effective user. Processes that \
            nelly exec started are listed, too.\n\n\
            Examples:\n  nelly top web\n  nelly top --json web | jq '.[].args'"
    )]
    Top(LookArgs),
    /// List the files of a sandbox that runs which differ from its image
    #[command(
        after_help = "One line a file: A (added), C (changed: contents, owner, mode or time) or D (deleted), and its path. A directory is C \
            when something in it differs. What is mounted in the container, such as /proc and a tmpfs, is left out. What Nelly itself writes, such \
            as /etc/hosts, is not.\n\n\
            Examples:\n  nelly diff web\n  nelly diff web | grep '^A /etc/'"
    )]
    Diff(LookArgs),
    /// Join standard input and output with a connection to a container, as for ssh's ProxyCommand
    Proxy(ProxyArgs),
    /// Log in to a machine of nelly boot by ssh, or run a command in it
    Ssh(crate::ssh_args::SshArgs),
    /// Print what ssh's configuration needs for machines of nelly boot
    SshConfig(crate::ssh_args::SshConfigArgs),
    /// List the sandboxes that run, or all
    Ps(PsArgs),
    /// Print what the container of a sandbox wrote
    Logs(LogsArgs),
    /// Print all that is known of sandboxes as JSON (schema 1)
    #[command(after_help = "Example:\n  nelly inspect web | jq '.[0].state'")]
    Inspect(NamesArgs),
    /// Print what happens to sandboxes, as it happens
    Events(EventsArgs),
    /// Give a sandbox another name
    Rename(RenameArgs),
    /// Remove sandboxes and what was written in them
    Rm(RmArgs),
    /// Remove what killed commands left behind; never what runs or can be started
    #[command(after_help = "Example:\n  nelly gc")]
    Gc,
    /// Boot a kernel or a cloud image in a new microVM, on this terminal or in the background
    #[command(
        mut_arg("network_alias", |arg| arg.hide(true)),
        mut_arg("net", |arg| arg.help(
            "Network of the machine: none, user (no privilege needed), tap=NAME, unix=PATH (passt) or vhost-user=PATH (Linux; whoever \
            listens there gets the guest's memory), with options: prefix=, ip=, gw=, dns=, search=, mtu= and default=deny for user; \
            mtu= and mac= for the others, vhost=off for tap [default: none, or user if a flag below needs it, or if nelly ssh does: \
            with -d and a seed]"
        ))
    )]
    Boot(Box<BootArgs>),
    /// Boot the isolated machine that the variables of the Hydra scripts describe
    Isolated(crate::hydra_args::IsolatedArgs),
    /// Boot the host machine that the variables of the Hydra scripts describe
    Host(crate::hydra_args::HostArgs),
    /// Pull, push, list, load, save, tag and remove images
    Image {
        #[command(subcommand)]
        verb: crate::image::args::ImageVerb,
    },
    /// Create, convert, check and show disk images
    Disk {
        #[command(subcommand)]
        verb: crate::disk::args::DiskVerb,
    },
    /// Make, list and remove networks of machines
    Network {
        #[command(subcommand)]
        verb: crate::network::args::NetworkVerb,
    },
    /// List, add and remove published ports of a sandbox that runs
    Port {
        #[command(subcommand)]
        verb: crate::life::port::args::PortVerb,
    },
    /// Check a name and a password with a registry, and keep them
    Login(crate::registry::args::LoginArgs),
    /// Forget the name and the password for a registry
    Logout(crate::registry::args::LogoutArgs),
    /// Measure start-up time, exec time and memory use, and compare with other monitors
    Bench(Box<crate::bench_args::BenchArgs>),
    /// Check this host and the installation, and suggest a fix for each problem
    Doctor(JsonArgs),
    /// Print the version and build id of nelly and of its assets
    Version(JsonArgs),
    /// Show the settings and where each value comes from
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Print units for systemd
    Generate {
        #[command(subcommand)]
        verb: crate::life::args::GenerateVerb,
    },
    /// Print a script that completes commands, flags and names in a shell
    #[command(after_help = "Packages install these scripts. By hand:\n  \
        source <(nelly completion bash)                                 in ~/.bashrc\n  \
        source <(nelly completion zsh)                                  in ~/.zshrc, after compinit\n  \
        nelly completion fish >~/.config/fish/completions/nelly.fish")]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print help for a command, or for exit-codes
    Help {
        /// The name of a command, or exit-codes
        topic: Vec<String>,
    },
}

/// A shell that completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// Fish
    Fish,
}

/// The verbs of `nelly config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Print every setting with its value and its source
    Show(crate::hydra_args::ShowArgs),
}

/// Machine-readable output.
#[derive(Debug, Args)]
pub(crate) struct JsonArgs {
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly run`.
#[derive(Debug, Args)]
#[command(
    override_usage = "nelly run [FLAGS] IMAGE [COMMAND [ARG...]]\n       nelly run [FLAGS] -- COMMAND [ARG...]",
    after_help = "IMAGE is a name as docker spells it (pulled if it is not in the local store), oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], rootfs:DIR or builtin:busybox.\n\
        `nelly run -- COMMAND` uses the built-in image. Flags after IMAGE belong to the command.\n\n\
        stdout carries only the container's output. stderr carries the container's and Nelly's own messages.\n\
        The sandbox stays when the command has ended: nelly ps -a, start, logs, rm. With --rm it is removed.\n\
        SIGINT (Ctrl-C), SIGTERM, SIGQUIT, SIGUSR1 and SIGUSR2 are forwarded to the container; the machine is killed at the third Ctrl-C. \
        If nelly run is killed or its terminal hangs up, the sandbox goes on without it. With --rm, the machine ends with nelly run; \
        SIGHUP is forwarded, and the machine is killed 5 seconds after it, and after a SIGTERM that the guest does not answer.\n\
        The image's health check and --health-cmd run in sandboxes that stay, and with -d: not with --rm in the foreground, and not with --in.\n\
        With -it, Ctrl-C goes to the container's terminal. Three in a row without any output in return kill the machine.\n\n\
        Examples:\n  \
        nelly run --rm -- echo hello\n  \
        nelly run --rm -it oci:./debian:12 bash\n  \
        echo hi | nelly run --rm -i -- cat\n  \
        nelly run --rm -m 1G --cpus 4 -e MODE=test -w /src rootfs:./tree make test\n  \
        nelly run --rm --security-opt seccomp=unconfined oci:./debian:12 perf stat true\n  \
        nelly run --rm --timeout 10s --result result.json -- sleep 60\n  \
        nelly run -d --name db -v data:/var/lib/postgresql/data postgres:17\n  \
        nelly run -d --name web -p 8080:80 --health-cmd 'wget -qO- localhost' --health-interval 10s nginx\n  \
        nelly run --rm --net user,default=deny --allow 203.0.113.7:443 alpine wget -qO- https://203.0.113.7\n  \
        nelly run --rm --net user,prefix=10.77.0.0/24 -- ip addr\n  \
        nelly run --rm --init --device /dev/fuse oci:./tools mount-it\n  \
        nelly run -d --relay ./app.sock=/run/app.sock --relay 8080=80 app\n  \
        nelly run --rm -it --ssh-agent --relay-out 5432=5432 oci:./tools sh\n  \
        nelly run --rm --secret API_KEY@api.example.com oci:./tools fetch\n  \
        nelly run --in web -it oci:./tools sh"
)]
pub(crate) struct RunArgs {
    /// Connect standard input to the container
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Allocate a terminal for the container
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable; NAME alone copies the value from this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Read environment variables from a file of NAME=VALUE lines; # starts a comment line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User and optional group in the container, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Host name of the container [default: the sandbox's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Name of the sandbox [default: two random words]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Run the container in the machine of this sandbox, beside its first container, with the same
    /// network and IPC; it is removed at its end
    #[arg(long = "in", value_name = "SANDBOX")]
    pub(crate) inside: Option<String>,
    /// Replace the image's entrypoint; an empty value removes it
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Remove the sandbox when it ends; without -d, the machine then ends with nelly run, too
    #[arg(long)]
    pub(crate) rm: bool,
    #[command(flatten)]
    pub(crate) kept: KeptArgs,
    /// Mount the image read-only, without a writable layer
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Mount a tmpfs in the container, e.g. /cache:size=64m
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub(crate) tmpfs: Vec<String>,
    /// Disable the default seccomp profile (seccomp=unconfined), or replace it (seccomp=FILE, in
    /// docker's format or the OCI runtime spec's)
    #[arg(long, value_name = "seccomp=unconfined|seccomp=FILE")]
    pub(crate) security_opt: Option<String>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) secrets: crate::network_args::SecretArgs,
    #[command(flatten)]
    pub(crate) relays: crate::relay_args::RelayArgs,
    #[command(flatten)]
    pub(crate) container: crate::container_args::ContainerArgs,
    /// When to fetch the image from its registry
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(crate) pull: crate::registry::args::PullPolicy,
    /// Kernel to boot [env: NELLY_KERNEL] [default: the installed one]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initramfs with Nelly's agent [env: NELLY_INITRD] [default: the installed one]
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Write one JSON object {id, exit, reason, timings, faults} to FILE or file descriptor N
    #[arg(long, value_name = "FILE|fd:N")]
    pub(crate) result: Option<String>,
    /// Print the duration of each phase on stderr, from the start of nelly to the machine's end
    #[arg(long)]
    pub(crate) timings: bool,
    /// Write the phases to FILE in the Chrome trace event format
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Print errors only: no progress bar and no notes
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The image, and the command with its arguments
    #[arg(value_name = "IMAGE [COMMAND [ARG...]]", trailing_var_arg = true)]
    pub(crate) words: Vec<String>,
}

/// Flags of sandboxes that stay.
#[derive(Debug, Default, Args)]
pub(crate) struct KeptArgs {
    /// Run in the background: print the id when the container runs, and keep the sandbox
    #[arg(short, long, conflicts_with_all = ["timeout", "result", "timings", "trace"])]
    pub(crate) detach: bool,
    /// Start the sandbox again after its end: no, on-failure[:MAXIMUM], always or unless-stopped;
    /// not with --rm [default: no]
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<String>,
    /// Signal of nelly stop, by name or number [default: the image's, else TERM]
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Grace time of nelly stop before SIGKILL, with a unit or in seconds; 0 kills at once
    /// [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) stop_timeout: Option<String>,
    /// Label, for filters
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,
    /// Size of the disk of the writable layer, which is sparse; with --rm a tmpfs in the guest
    /// takes its place, and this flag needs -d [default: 8G]
    #[arg(long, value_name = "SIZE")]
    pub(crate) storage: Option<String>,
    /// With -it and without --rm, keys that leave the sandbox running: one character, or ctrl-X,
    /// several separated by commas [default: ctrl-]]
    #[arg(long, value_name = "KEYS")]
    pub(crate) detach_keys: Option<String>,
    #[command(flatten)]
    pub(crate) health: crate::health_args::HealthArgs,
}

impl KeptArgs {
    /// A flag of what only a sandbox has that stays, or that runs in the background.
    pub(crate) fn of_keeper(&self) -> Option<&'static str> {
        let given = [
            ("--restart", self.restart.is_some()),
            ("--storage", self.storage.is_some()),
            ("--detach-keys", self.detach_keys.is_some()),
        ];
        let given = given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
        given.or_else(|| self.health.given())
    }

    /// A flag that says something about a sandbox of its own.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--stop-signal", self.stop_signal.is_some()),
            ("--stop-timeout", self.stop_timeout.is_some()),
            ("--label", !self.label.is_empty()),
        ];
        let given = given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
        given.or_else(|| self.of_keeper())
    }
}

impl RunArgs {
    /// A flag that says something about the machine or about a sandbox of its own.
    pub(crate) fn of_machine(&self) -> Option<&'static str> {
        let machine = &self.machine;
        let given = [
            ("--cpus", machine.cpus.is_some()),
            ("--memory", machine.memory.is_some()),
            ("--nested", machine.nested),
            ("--confine", machine.confine.is_some()),
            ("--monitor-user", machine.monitor_user.is_some()),
            ("--append", machine.append.is_some()),
            ("--timeout", machine.timeout.is_some()),
            ("--dry-run", machine.dry_run),
            ("--kernel", self.kernel.is_some()),
            ("--initrd", self.initrd.is_some()),
            ("--result", self.result.is_some()),
            ("--timings", self.timings),
            ("--trace", self.trace.is_some()),
        ];
        let given = given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
        let given = given.or_else(|| self.network.given()).or_else(|| self.secrets.given());
        let given = given.or_else(|| self.relays.given());
        given.or_else(|| self.kept.given())
    }

    /// A flag that shows the machine's timeline.
    pub(crate) fn of_timeline(&self) -> Option<&'static str> {
        let given = [("--timings", self.timings), ("--trace", self.trace.is_some())];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// Whether a flag needs the timeline.
    pub(crate) fn wants_timeline(&self) -> bool {
        self.timings || self.trace.is_some() || self.result.is_some()
    }
}

/// Splits the words after the flags of `run`. The first word is the image; if `--` comes directly
/// before the words, all of them are the command, and the image is the built-in one.
///
/// clap removes the first `--`, so the raw arguments are needed to find it.
pub(crate) fn image_and_command(raw: &[String], words: &[String]) -> (Option<String>, Vec<String>) {
    let first = raw.len().saturating_sub(words.len());
    let after_dashes = first > 0 && raw.get(first - 1).is_some_and(|word| word == "--");
    match words.split_first() {
        Some((image, command)) if !after_dashes => {
            // `IMAGE -- CMD` is accepted, because users expect that `--` ends the flags.
            let command = command.strip_prefix(&["--".to_owned()][..]).unwrap_or(command);
            (Some(image.clone()), command.to_vec())
        }
        _ => (None, words.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> (Option<String>, Vec<String>, RunArgs) {
        let raw: Vec<String> = ["nelly", "run"].iter().chain(words).map(|w| (*w).to_owned()).collect();
        let Verb::Run(args) = Cli::from_words(&raw).unwrap().verb else { panic!("not run") };
        let (image, command) = image_and_command(&raw, &args.words);
        (image, command, *args)
    }

    #[test]
    fn flags_end_at_the_image_and_dashes_mean_the_built_in_one() {
        let table: &[(&[&str], Option<&str>, &[&str])] = &[
            (&["--", "true"], None, &["true"]),
            (&["-it", "--", "sh", "-c", "x"], None, &["sh", "-c", "x"]),
            (&["oci:d"], Some("oci:d"), &[]),
            (&["oci:d", "ls", "-l", "--rm"], Some("oci:d"), &["ls", "-l", "--rm"]),
            (&["oci:d", "-i"], Some("oci:d"), &["-i"]),
            (&["oci:d", "--", "ls"], Some("oci:d"), &["ls"]),
            (&["oci:d", "sh", "--", "x"], Some("oci:d"), &["sh", "--", "x"]),
            (&["--", "sh", "--", "x"], None, &["sh", "--", "x"]),
            (&["--cpus", "2", "oci:d", "x"], Some("oci:d"), &["x"]),
        ];
        for (words, image, command) in table {
            let (got_image, got_command, _) = run(words);
            assert_eq!(
                (got_image.as_deref(), got_command),
                (*image, command.iter().map(|w| (*w).to_owned()).collect()),
                "{words:?}"
            );
        }
        let (_, _, args) = run(&["-i", "-e", "A=1", "-eB", "-u", "web", "-w/srv", "-m", "1G", "oci:d"]);
        assert!(args.interactive && !args.tty);
        assert_eq!(args.env, ["A=1", "B"]);
        assert_eq!(args.machine.memory.as_deref(), Some("1G"));
    }

    #[test]
    fn a_signal_of_kill_may_stand_alone() {
        for (words, expected) in [
            (&["kill", "-9", "web"][..], Some("9")),
            (&["kill", "-KILL", "web"], Some("KILL")),
            (&["kill", "web", "-SIGUSR1"], Some("SIGUSR1")),
            (&["kill", "-s", "HUP", "web"], Some("HUP")),
            (&["kill", "web"], Some("KILL")),
            (&["kill", "-9", "-15", "web"], None),
            (&["kill", "-x", "web"], None),
            (&["kill", "-9"], None),
            (&["stop", "-9", "web"], None),
        ] {
            let raw: Vec<String> = ["nelly"].iter().chain(words).map(|w| (*w).to_owned()).collect();
            let signal = match Cli::from_words(&raw).map(|cli| cli.verb) {
                Ok(Verb::Kill(args)) => Some(args.signal),
                _ => None,
            };
            assert_eq!(signal.as_deref(), expected, "{words:?}");
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        run_alone().debug_assert();
    }

    #[test]
    fn the_help_of_a_flag_names_the_variable_behind_it() {
        let command = run_alone();
        for setting in crate::settings::TABLE.iter().filter(|setting| !setting.flag.is_empty()) {
            let name = setting.flag.trim_start_matches('-');
            let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name)).unwrap();
            let help = flag.get_help().unwrap().to_string();
            assert!(help.contains(&format!("[env: {}]", setting.env)), "--{name}: {help}");
        }
    }

    #[test]
    fn run_says_the_same_alone_and_among_the_verbs() {
        for words in [&["--help"][..], &["-h"], &["--cpus"], &["--cpus", "x", "a"], &["--nope"], &["-x"]] {
            let raw: Vec<String> = ["nelly", "run"].iter().chain(words).map(|w| (*w).to_owned()).collect();
            let (alone, among) = (Cli::from_words(&raw).unwrap_err(), Cli::try_parse_from(&raw).unwrap_err());
            assert_eq!(alone.to_string(), among.to_string());
            assert_eq!((alone.kind(), alone.exit_code()), (among.kind(), among.exit_code()), "{words:?}");
        }
    }
}

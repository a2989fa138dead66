//! Arguments of the verbs for sandboxes that stay.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Which sandboxes.
#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Sandboxes, by name, id or the beginning of an id
    #[arg(required = true, value_name = "SANDBOX")]
    pub(crate) names: Vec<String>,
}

/// `nelly start`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --restartable: always starts all that have ended, unless-stopped those that no command stopped, and \
    on-failure those whose end nobody saw, as at a reboot. What was never started stays as it is.\n\n\
    Examples:\n  \
    nelly start web\n  \
    nelly ps -aq --filter status=exited | xargs -r nelly start\n  \
    nelly start --restartable                        after a reboot of the host"
)]
pub(crate) struct StartArgs {
    /// Start all whose restart policy wants it, and that do not run
    #[arg(long, conflicts_with = "names")]
    pub(crate) restartable: bool,
    /// Sandboxes, by name, id or the beginning of an id
    #[arg(required_unless_present = "restartable", value_name = "SANDBOX")]
    pub(crate) names: Vec<String>,
}

/// The verbs of `nelly generate`.
#[derive(Debug, Subcommand)]
pub(crate) enum GenerateVerb {
    /// Print a systemd unit that starts and stops a sandbox
    Systemd(SystemdArgs),
}

/// `nelly generate systemd`.
#[derive(Debug, Args)]
#[command(
    after_help = "The unit is one for systemctl --user; its first lines say where to put it. The sandbox's own restart policy holds, \
    so no Restart= is in it.\n\n\
    Examples:\n  \
    nelly generate systemd --name web >~/.config/systemd/user/nelly-web.service\n  \
    cd ~/.config/systemd/user && nelly generate systemd --files web db"
)]
pub(crate) struct SystemdArgs {
    /// Let the unit name the sandbox by its name instead of its id
    #[arg(long)]
    pub(crate) name: bool,
    /// Write nelly-NAME.service for each into the current directory, and print the file names
    #[arg(long)]
    pub(crate) files: bool,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// `nelly stop`.
#[derive(Debug, Args)]
#[command(
    after_help = "The first signal is the image's STOPSIGNAL (or --stop-signal of run), else SIGTERM. \
    After the grace time it is SIGKILL. What was written is flushed before the machine ends.\n\
    A machine of nelly boot has its power button pressed every 2 s until it ends, and is killed after the grace time; one without ACPI has no button, \
    and is killed at once. Standard error then says so.\n\
    `--time 0` ends the sandbox also when its process on this host, nelly-keeper, does not answer; what was written last may then be lost.\n\n\
    Examples:\n  \
    nelly stop web\n  \
    nelly stop -t 30 web db\n  \
    nelly stop --signal INT web"
)]
pub(crate) struct StopArgs {
    /// Grace time before SIGKILL (500ms, 1m30s, or a number of seconds); 0 kills at once
    /// [default: the sandbox's, 10s; 30s for a machine of nelly boot, whose power button is
    /// pressed]
    #[arg(short, long, visible_alias = "timeout", value_name = "DURATION")]
    pub(crate) time: Option<String>,
    /// First signal, by name or number [default: that of the sandbox]; not for a machine of nelly
    /// boot
    #[arg(short, long, value_name = "SIGNAL")]
    pub(crate) signal: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// `nelly wait`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --agent it succeeds at once for what `nelly run` starts, and fails for a machine that has no agent, or that ends before it has come.\n\n\
    Examples:\n  \
    nelly wait web\n  \
    nelly boot -d --name dev --image debian.qcow2 --agent\n  \
    nelly wait --agent --time 5m dev && nelly exec dev uptime"
)]
pub(crate) struct WaitArgs {
    /// Wait until the agent in the guest answers, so that `nelly exec` and `nelly cp` work; of a
    /// machine of nelly boot, cloud-init starts it
    #[arg(long)]
    pub(crate) agent: bool,
    /// How long to wait for an agent at most (500ms, 1m30s, or a number of seconds) [default: as
    /// long as the machine runs]
    #[arg(short, long, visible_alias = "timeout", value_name = "DURATION", requires = "agent")]
    pub(crate) time: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// `nelly restart`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nelly restart web\n  \
    nelly restart -t 2 web db")]
pub(crate) struct RestartArgs {
    /// Grace time before SIGKILL (500ms, 1m30s, or a number of seconds); 0 kills at once [default:
    /// the sandbox's, 10s; 30s for a machine of nelly boot]
    #[arg(short, long, visible_alias = "timeout", value_name = "DURATION")]
    pub(crate) time: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// `nelly kill`.
#[derive(Debug, Args)]
#[command(
    after_help = "The signal may also stand alone, as for kill(1): -9, -KILL, -SIGUSR1. A machine of nelly boot takes KILL alone.\n\n\
    Examples:\n  \
    nelly kill web\n  \
    nelly kill -s HUP web\n  \
    nelly kill -9 web db"
)]
pub(crate) struct KillArgs {
    /// Signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub(crate) signal: String,
    /// Send it to the exec with this id, or the beginning of one, instead of the container
    #[arg(long, value_name = "ID")]
    pub(crate) exec: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// `nelly exec`.
#[derive(Debug, Args)]
#[command(
    override_usage = "nelly exec [FLAGS] SANDBOX COMMAND [ARG...]\n       nelly exec --list [--json|-q] SANDBOX",
    after_help = "Flags after SANDBOX belong to the command. The exit code is the command's. If nelly exec is killed, the command's process \
        group gets SIGHUP, and SIGKILL 5 seconds later; with -d and with --session it lives on.\n\
        A session is left by the detach keys (Ctrl-]) or by the end of nelly exec, also by Ctrl-C without -t; `nelly attach --exec ID SANDBOX` returns to it \
        and shows its latest output, up to 256 KiB. Its exit code is held for ten minutes.\n\n\
        Examples:\n  \
        nelly exec web ls -l /srv\n  \
        nelly exec -it web sh\n  \
        nelly exec --session -it web sh\n  \
        nelly exec --list web\n  \
        nelly exec --list -q web/tools                 ids of the execs in one container\n  \
        nelly exec -i web sh -c 'cat >/srv/page' <page\n  \
        nelly exec web/tools id                        in a container of nelly run --in"
)]
pub(crate) struct ExecArgs {
    /// Connect standard input to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Allocate a terminal for the command
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Start the command and return; its output is discarded
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub(crate) detach: bool,
    /// Let the command outlive this client; nelly attach --exec returns to it
    #[arg(long, conflicts_with = "detach")]
    pub(crate) session: bool,
    /// Keys that leave a session: one character, or ctrl-X, several separated by commas
    #[arg(long, value_name = "KEYS", default_value = "ctrl-]", requires = "session")]
    pub(crate) detach_keys: String,
    /// List the execs of the sandbox, or of SANDBOX/CONTAINER, that run: id, command, since when,
    /// how many clients, and whether it is a session
    #[arg(long, conflicts_with_all = ["interactive", "tty", "detach", "session", "env", "env_file", "user", "workdir"])]
    pub(crate) list: bool,
    /// With --list, print JSON (schema 1)
    #[arg(long, requires = "list")]
    pub(crate) json: bool,
    /// With --list, print ids only
    #[arg(short, long, requires = "list", conflicts_with = "json")]
    pub(crate) quiet: bool,
    /// Set an environment variable; NAME alone copies the value from this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Read environment variables from a file of NAME=VALUE lines; # starts a comment line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// User and optional group in the container, by name or number [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Working directory in the container [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The sandbox, and the command with its arguments
    #[arg(value_name = "SANDBOX COMMAND [ARG...]", trailing_var_arg = true, required = true)]
    pub(crate) words: Vec<String>,
}

/// `nelly attach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Shows the latest output first; of a machine of nelly boot it is the serial console. Several may be attached at once; who reads too slowly loses output and is told so on stderr. \
    On a terminal, the detach keys leave the container or the session running; elsewhere Ctrl-C does. The exit code is that of the container or \
    the session, or 0 after the detach keys. The output and the exit code of a session are held for ten minutes after its end.\n\n\
    Examples:\n  \
    nelly attach web\n  \
    nelly attach --no-stdin --detach-keys ctrl-p,ctrl-q web\n  \
    nelly attach --exec 3f2a web"
)]
pub(crate) struct AttachArgs {
    /// Do not connect standard input to the container
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Attach to the session with this id, or the beginning of one, instead of the container
    #[arg(long, value_name = "ID")]
    pub(crate) exec: Option<String>,
    /// Keys that detach: one character, or ctrl-X, several separated by commas
    #[arg(long, value_name = "KEYS", default_value = "ctrl-]")]
    pub(crate) detach_keys: String,
    /// The sandbox, by name, id or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    pub(crate) name: String,
}

/// `nelly update`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").args(["restart", "memory"]).required(true).multiple(true))]
#[command(after_help = "Examples:\n  \
    nelly update --restart unless-stopped web\n  \
    nelly update --restart no web db\n  \
    nelly update --memory 256M web\n  \
    nelly update --memory max web")]
pub(crate) struct UpdateArgs {
    /// Restart policy, which holds from the next exit on: no, on-failure[:MAXIMUM], always or
    /// unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<String>,
    /// Limit of the container's memory, such as 256M (binary): at least 6M, at most the machine's
    /// memory, and not less than the container uses; or max for no limit. A container that uses
    /// more than its limit has processes killed
    #[arg(long, short = 'm', value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// `nelly stats`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nelly stats\n  \
    nelly stats --json web")]
pub(crate) struct StatsArgs {
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
    /// Sandboxes, by name, id or the beginning of an id [default: all that run]
    #[arg(value_name = "SANDBOX")]
    pub(crate) names: Vec<String>,
}

/// `nelly metrics`.
#[derive(Debug, Args)]
#[command(
    after_help = "The text is that of Prometheus' exposition format 0.0.4; docs/metrics.md has the names. A sandbox that does not answer \
    within two seconds has nelly_sandbox_up 0, and holds up no other; then the code is 1, and the text is whole all the same. \
    One that starts or stops has nelly_sandbox_info alone.\n\n\
    Examples:\n  \
    nelly metrics\n  \
    nelly metrics > /var/lib/node_exporter/nelly.prom.new; mv /var/lib/node_exporter/nelly.prom.new /var/lib/node_exporter/nelly.prom"
)]
pub(crate) struct MetricsArgs {
    /// Sandboxes, by name, id or the beginning of an id [default: all that run]
    #[arg(value_name = "SANDBOX")]
    pub(crate) names: Vec<String>,
}

/// `nelly ps`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nelly ps -a\n  \
    nelly ps -q --filter status=exited | xargs -r nelly rm\n  \
    nelly ps -q --filter health=unhealthy | xargs -r nelly restart\n  \
    nelly ps --json --filter label=stage=test")]
pub(crate) struct PsArgs {
    /// List all sandboxes, also those that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print whole ids and commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// List only sandboxes that fit: status=STATUS (lists all of that status), name=PART,
    /// id=PREFIX, label=KEY[=VALUE], ancestor=IMAGE,
    /// health=starting|healthy|unhealthy|none; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly rm`.
#[derive(Debug, Args)]
#[command(
    after_help = "With a sandbox go its writable layer, volumes and logs; with a machine of nelly boot its own disk and seed, not the image and not an overlay=PATH.\n\n\
    Examples:\n  \
    nelly rm web\n  \
    nelly rm -f web 5f3a"
)]
pub(crate) struct RmArgs {
    /// End those that run, at once; a sandbox that is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// `nelly rename`.
#[derive(Debug, Args)]
#[command(after_help = "The host name of the container stays. Example:\n  nelly rename quiet-heron web")]
pub(crate) struct RenameArgs {
    /// The sandbox, by name, id or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
    /// Its new name
    #[arg(value_name = "NEW")]
    pub(crate) new: String,
}

/// `nelly events`.
#[derive(Debug, Args)]
#[command(
    after_help = "One line an event: time (RFC 3339), event, short id, name, and what there is to say, such as code=0 reason=exited. The events are \
    created, started, running, exited, restarted, paused, unpaused, health_status, network (change=port_added, port_removed or down), renamed and removed. They are told from the files of the sandboxes, \
    so what came and went at once, such as a pause of a millisecond, may not be told. An exit whose code nobody wrote down has the reason unclean (the \
    sandbox's process on this host was killed, or the host went down) or unknown. Ctrl-C ends with code 0.\n\
    Without --until, nelly events goes on until Ctrl-C. A duration is counted from now on, so `--until 10s` watches for ten seconds (docker counts it back). \
    With a time that is over, or 0s, it prints what --since asks for and ends at once.\n\n\
    Examples:\n  \
    nelly events\n  \
    nelly events --filter event=exited --filter label=stage=test\n  \
    nelly events --filter 'event=health_status: unhealthy'\n  \
    nelly events --json --since 1h --until 0s        the last hour, and no more\n  \
    nelly events --until 2026-01-31T12:00:00Z"
)]
pub(crate) struct EventsArgs {
    /// Print only events that fit: event=EVENT, name=PART, id=PREFIX, label=KEY[=VALUE],
    /// ancestor=IMAGE; may be repeated: of each key one must fit
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Begin with the past, as far as the sandboxes that are still there tell it: when each was
    /// created, its latest start and end, and its health, not older than a duration (30s, 5m, 1h)
    /// or a time (RFC 3339, UTC if it has no offset; or seconds since 1970)
    #[arg(long, value_name = "TIME|DURATION")]
    pub(crate) since: Option<String>,
    /// End at a time (as --since has it), or after a duration from now (30s, 5m, 1h) [default: at
    /// Ctrl-C]
    #[arg(long, value_name = "TIME|DURATION")]
    pub(crate) until: Option<String>,
    /// Print JSON, one object a line (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `nelly cp`.
#[derive(Debug, Args)]
#[command(
    override_usage = "nelly cp [FLAGS] SANDBOX:PATH PATH|-\n       nelly cp [FLAGS] PATH|- SANDBOX:PATH",
    after_help = "The rules are those of docker cp. Into a directory that exists, the source is copied under its own name; elsewhere the last name of the \
        destination is the name of the copy, and the directory before it has to exist. SOURCE/. copies what is in the directory, and not the directory. \
        A path in a container begins at its root. A path of this host that has a colon begins with / or ./.\n\
        Links are copied as links, hard links as hard links, modes and times are kept; devices, sockets and named pipes are left out. A file takes the place of \
        another only when it is whole. A link on the way in a directory that is written to is not followed.\n\
        With -, the other end is a tar archive, which goes into a directory that exists.\n\n\
        Examples:\n  \
        nelly cp page.html web:/srv/\n  \
        nelly cp web:/etc/hosts .\n  \
        nelly cp ./site/. web:/srv                     what is in ./site\n  \
        nelly cp -a web:/var/lib/db backup\n  \
        nelly cp web:/var/log - | tar -t\n  \
        nelly cp a:/data - | nelly cp - b:/"
)]
pub(crate) struct CpArgs {
    /// Keep owners, set-user-id bits and extended attributes; otherwise copies in a container are
    /// root's, and copies on this host yours
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// If the source is a link, copy what it leads to
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// What is copied; - reads a tar archive from standard input
    #[arg(value_name = "SANDBOX:PATH|PATH|-", id = "SOURCE")]
    pub(crate) from: String,
    /// Where it goes; - writes a tar archive to standard output
    #[arg(value_name = "SANDBOX:PATH|PATH|-", id = "DESTINATION")]
    pub(crate) to: String,
}

/// `nelly top` and `nelly diff`.
#[derive(Debug, Args)]
pub(crate) struct LookArgs {
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
    /// The sandbox, by name, id or the beginning of an id; SANDBOX/CONTAINER is a further container
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
}

/// `nelly proxy`.
#[derive(Debug, Args)]
#[command(
    after_help = "It needs no network in the sandbox, but for a machine of nelly boot without agent: there it goes by the published port (-p, nelly port add) \
        that leads to PORT. Each direction ends by itself: the end of standard input is passed on, and the command ends when \
        the container has closed its end. The exit code is 1 if the sandbox does not run or nobody accepts there.\n\n\
        Examples:\n  \
        nelly proxy web 80\n  \
        nelly proxy db /run/postgresql/.s.PGSQL.5432\n  \
        ssh -o 'ProxyCommand=nelly proxy %h 22' root@box"
)]
pub(crate) struct ProxyArgs {
    /// The sandbox, by name, id or the beginning of an id; SANDBOX/CONTAINER is a further container
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
    /// A port of the container's loopback address, or the absolute path of a Unix socket in it
    #[arg(value_name = "PORT|PATH")]
    pub(crate) target: String,
}

/// `nelly logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "What the container wrote to its standard output goes to standard output, and what it wrote to its \
    standard error to standard error. Of a machine of nelly boot it is what its serial port said. The log keeps the newest output, up to 64 MiB.\n\n\
    Examples:\n  \
    nelly logs web\n  \
    nelly logs -f --tail 20 web\n  \
    nelly logs --since 10m -t web\n  \
    nelly logs --since 2026-01-31T12:00:00Z web 2>/dev/null\n  \
    nelly logs --since 1769860800 web"
)]
pub(crate) struct LogsArgs {
    /// Go on with new output until the sandbox ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show only the last N lines, or all
    #[arg(short = 'n', long, value_name = "N|all", default_value = "all", value_parser = tail)]
    pub(crate) tail: Tail,
    /// Show only what is not older: a duration (30s, 5m, 1h) or a time (RFC 3339, UTC if it has no
    /// offset; or seconds since 1970)
    #[arg(long, value_name = "TIME|DURATION")]
    pub(crate) since: Option<String>,
    /// Print the time before each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// The sandbox, by name, id or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
}

/// The value of `--tail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Every line that there is
    All,
    /// So many lines
    Lines(u64),
}

fn tail(text: &str) -> Result<Tail, String> {
    match (text, text.parse()) {
        ("all", _) => Ok(Tail::All),
        (_, Ok(lines)) => Ok(Tail::Lines(lines)),
        _ => Err("write a number of lines, or all".to_owned()),
    }
}

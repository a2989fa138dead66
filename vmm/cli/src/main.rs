//! The `nelly` command, a client: machines run in `nelly-monitor` processes.

mod advice;
mod agent_file;
mod args;
mod assets;
mod bench;
mod bench_args;
mod boot;
mod boot_args;
mod boot_base;
mod boot_disk;
mod boot_image;
mod boot_kept;
mod boot_paths;
mod boot_seed;
mod bug;
mod completion;
mod console;
mod container_args;
mod context;
mod ctrl_c;
mod detach_keys;
mod disk;
mod docker_words;
mod doctor;
mod environment;
#[cfg(test)]
mod examples;
mod fail;
mod fetch;
mod health_args;
mod host;
mod hydra;
mod hydra_args;
mod image;
mod image_plan;
mod life;
mod machine;
mod machine_args;
mod man;
mod monitor_user;
mod network;
mod network_args;
mod out;
mod output_file;
mod progress;
mod registries;
mod registry;
mod relay_args;
mod result;
mod run;
mod seed_args;
mod settings;
mod show;
mod signals;
mod ssh;
mod ssh_args;
mod ssh_dir;
mod stdio;
mod table;
mod vcpus;

use std::process::ExitCode;

use anyhow::Result;
use args::{Cli, ConfigVerb, Verb};
use boot_args::BootArgs;
use clap::error::ErrorKind;
use context::Context;
use life::args::GenerateVerb;
use machine_args::LogLevel;
use nelly_hydra::Profile;
use nelly_sandbox::state::outcome;
use nelly_sandbox::timeline::name;
use nelly_vmm::timeline::{self, Recorder};

/// Exit code of failures of all verbs except `run` and `boot`.
const FAILED: u8 = 1;

/// Exit code of usage errors of the same verbs.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let recorder = recorder();
    bug::expect();
    let raw: Vec<String> = match std::env::args_os().map(std::ffi::OsString::into_string).collect() {
        Ok(raw) => raw,
        Err(word) => {
            return fail::report(&anyhow::anyhow!("argument {word:?} is not UTF-8"), false, outcome::FAILED);
        }
    };
    // Before the command line is parsed: these are no verbs of a person's.
    match (raw.get(1).map(String::as_str), raw.get(2..)) {
        (Some(completion::VERB), Some(words)) => return completion::complete(words),
        (Some(image_plan::VERB), _) => return image_plan::read(),
        (Some(man::VERB), Some([directory])) => {
            let written = man::write(directory.as_ref());
            return written.unwrap_or_else(|error| fail::report(&error, false, FAILED));
        }
        _ => {}
    }
    let cli = match Cli::from_words(&raw) {
        Ok(cli) => cli,
        Err(error) => return usage(error, &raw),
    };
    let (code, json) = match &cli.verb {
        Verb::Run(_) | Verb::Exec(_) | Verb::Attach(_) | Verb::Ssh(_) => (outcome::FAILED, false),
        Verb::Boot(_) | Verb::Isolated(_) | Verb::Host(_) => (outcome::FAILED, false),
        Verb::Doctor(args) | Verb::Version(args) => (FAILED, args.json),
        Verb::Config { verb: ConfigVerb::Show(args) } => (FAILED, args.json),
        Verb::Image { verb } => (FAILED, verb.json()),
        Verb::Disk { verb } => (FAILED, verb.json()),
        Verb::Network { verb } => (FAILED, verb.json()),
        Verb::Port { verb } => (FAILED, verb.json()),
        Verb::Stats(args) => (FAILED, args.json),
        Verb::Top(args) | Verb::Diff(args) => (FAILED, args.json),
        _ => (FAILED, false),
    };
    match dispatch(&cli.verb, &raw, &recorder) {
        Ok(code) => code,
        // A value that a flag cannot have is a usage error, as what clap refuses is.
        Err(error) if fail::is_usage(&error) && code == FAILED => fail::report(&error, json, USAGE),
        Err(error) => fail::report(&error, json, fail::code(&error).unwrap_or(code)),
    }
}

/// Records the start of this process, as the first action.
fn recorder() -> Recorder {
    let main_ns = timeline::now_ns();
    let word = std::env::var(timeline::ORIGIN_VARIABLE).ok();
    let recorder = Recorder::new(timeline::origin(word.as_deref(), main_ns));
    recorder.stamp_at(name::MAIN, main_ns);
    recorder
}

fn dispatch(verb: &Verb, raw: &[String], recorder: &Recorder) -> Result<ExitCode> {
    if let Verb::Help { topic } = verb {
        return show::help(topic);
    }
    if let Verb::Completion { shell } = verb {
        return completion::script(*shell);
    }
    let context = Context::load(boot_kept::MACHINES)?;
    match verb {
        Verb::Run(args) => {
            log(args.machine.log_level, args.quiet, &context)?;
            run::run(args, raw, &context, recorder)
        }
        Verb::Create(args) => {
            log(args.machine.log_level, args.quiet, &context)?;
            run::create(args, raw, &context, recorder)
        }
        Verb::Start(args) => life::start(args, &context),
        Verb::Stop(args) => life::stop(args, &context),
        Verb::Kill(args) => life::kill(args, &context),
        Verb::Restart(args) => life::restart(args, &context),
        Verb::Wait(args) => life::wait(args, &context),
        Verb::Exec(args) => life::exec(args, &context),
        Verb::Attach(args) => life::attach(args, &context),
        Verb::Pause(args) => life::pause(args, &context),
        Verb::Unpause(args) => life::unpause(args, &context),
        Verb::Update(args) => life::update(args, &context),
        Verb::Stats(args) => life::stats(args, &context),
        Verb::Metrics(args) => life::metrics(args, &context),
        Verb::Cp(args) => life::cp(args, &context),
        Verb::Top(args) => life::top(args, &context),
        Verb::Diff(args) => life::diff(args, &context),
        Verb::Proxy(args) => life::proxy(args, &context),
        Verb::Ssh(args) => ssh::ssh(args, &context),
        Verb::SshConfig(args) => ssh::config(args, &context),
        Verb::Ps(args) => life::ps(args, &context),
        Verb::Logs(args) => life::logs(args, &context),
        Verb::Inspect(args) => life::inspect(args, &context),
        Verb::Events(args) => life::events(args, &context),
        Verb::Rename(args) => life::rename(args, &context),
        Verb::Rm(args) => life::rm(args, &context),
        Verb::Gc => life::gc(&context).and_then(|code| network::gc(&context).map(|()| code)),
        Verb::Generate { verb: GenerateVerb::Systemd(args) } => life::systemd(args, &context),
        Verb::Boot(args) => boot(args, &context, recorder),
        Verb::Isolated(args) => {
            let profile = if args.bare { Profile::IsolatedBare } else { Profile::Isolated };
            let args = hydra::boot_args(&args.common, profile, &context)?;
            args.map_or(Ok(ExitCode::SUCCESS), |args| boot(&args, &context, recorder))
        }
        Verb::Host(args) => {
            let args = hydra::boot_args(&args.common, Profile::Host, &context)?;
            args.map_or(Ok(ExitCode::SUCCESS), |args| boot(&args, &context, recorder))
        }
        Verb::Image { verb } => image::run(verb, &context),
        Verb::Disk { verb } => disk::run(verb),
        Verb::Network { verb } => network::run(verb, &context),
        Verb::Port { verb } => life::port::run(verb, &context),
        Verb::Login(args) => registry::login(args, &context),
        Verb::Logout(args) => registry::logout(args, &context),
        Verb::Bench(args) => bench::run(args, &context),
        Verb::Doctor(args) => doctor::run(args.json, &context),
        Verb::Version(args) => show::version(args.json, &context),
        Verb::Config { verb: ConfigVerb::Show(args) } => match args.machine {
            Some(machine) => hydra::show(machine.profile(), args.json),
            None => show::config(args.json, &context),
        },
        Verb::Completion { .. } | Verb::Help { .. } => unreachable!("handled above"),
    }
}

fn boot(args: &BootArgs, context: &Context, recorder: &Recorder) -> Result<ExitCode> {
    log(args.machine.log_level, false, context)?;
    // The image of a URL is from here on one of this host.
    let fetched = fetch::image(args, context)?;
    let args = fetched.as_ref().unwrap_or(args);
    if args.detach { boot_kept::run(args, context) } else { boot::run(args, context, recorder) }
}

/// Reports a usage error. Its exit code is 125 for `run`, `exec`, `attach`, `ssh`, `boot`,
/// `isolated` and `host`, like every failure that is not the container's, and 2 for other verbs.
fn usage(mut error: clap::Error, raw: &[String]) -> ExitCode {
    let verb = raw.get(1).map(String::as_str);
    let hostname = docker_words::hostname(&error, raw);
    let asked =
        hostname.is_none() && matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if let Some(answer) = hostname {
        out::message(answer);
    } else if asked {
        // Printing fails only if the reader has gone.
        let _ = error.print();
    } else if let Some(answer) = docker_words::answer(&error, raw) {
        out::message(answer);
    } else {
        docker_words::without_guesses(&mut error);
        // The message repeats arguments, which may contain control characters.
        out::note(error);
    }
    match verb {
        _ if asked => ExitCode::SUCCESS,
        Some("run" | "boot" | "isolated" | "host" | "exec" | "attach" | "ssh") => {
            ExitCode::from(outcome::FAILED)
        }
        _ => ExitCode::from(USAGE),
    }
}

fn log(flag: Option<LogLevel>, quiet: bool, context: &Context) -> Result<()> {
    use clap::ValueEnum;
    let flag = flag.and_then(|level| level.to_possible_value()).map(|value| value.get_name().to_owned());
    let flag = flag.or_else(|| quiet.then(|| "error".to_owned()));
    let (word, source) = context.settings.get("log_level", flag.as_deref());
    let level: tracing::Level = word.parse().map_err(|_| {
        anyhow::anyhow!("log level {word:?} (from {source}) is not error, warn, info, debug or trace")
    })?;
    // Fails if a subscriber is already set, which only this function does.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| out::LogWriter)
        .with_target(false)
        .try_init();
    Ok(())
}

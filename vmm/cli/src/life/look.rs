//! `nelly top` and `nelly diff`: what runs in a container, and how its files differ from its image.

use std::io::{BufWriter, ErrorKind, Write, stdout};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};
use nelly_sandbox::agent::Inspection;
use nelly_sandbox::connect::inspect::{Change, ChangeKind, Message, Process, Records, Told};
use nelly_vmm::text;
use serde_json::{Value, json};

use super::args::LookArgs;
use super::{connect, runtime, sandboxes, target};
use crate::context::Context;
use crate::{out, table};

/// Asks the guest about the container that a word names, and gives each record to `take`.
fn look<M: Message>(
    word: &str,
    what: Inspection,
    context: &Context,
    mut take: impl FnMut(M) -> Result<()>,
) -> Result<()> {
    let (name, container) = target(word);
    let sandbox = sandboxes(context)?.find(name)?;
    if !sandbox.condition()?.is_live() {
        bail!("sandbox {name} does not run: `nelly start {name}` starts it");
    }
    let runtime = runtime()?;
    let asked = runtime.block_on(async {
        Ok::<_, Error>(connect(&sandbox).await?.of_container(container).inspect(what).await?)
    });
    let mut records: Records = asked?;
    while let Some(told) = records.take().with_context(|| format!("cannot look into {word}"))? {
        match told {
            Told::Record(record) => take(record)?,
            Told::Note(sentence) => out::message(sentence),
        }
    }
    Ok(())
}

/// Prints the processes of a container.
pub(crate) fn top(args: &LookArgs, context: &Context) -> Result<ExitCode> {
    let mut processes = Vec::new();
    look(&args.sandbox, Inspection::Processes, context, |process: Process| {
        processes.push(process);
        Ok(())
    })?;
    if args.json {
        let all: Vec<Value> = processes.iter().map(|one| as_json(one, &processes)).collect();
        out::json(format_args!("{:#}", Value::from(all)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["PID", "PPID", "USER", "STATE", "AGE", "CPU SECONDS", "RSS KiB", "COMMAND"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(processes.iter().map(|one| row(one, &processes)));
    for line in table::aligned(&rows) {
        out::line(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The parent's number in the container; 0 if it is outside of it.
fn parent(of: &Process, all: &[Process]) -> u32 {
    all.iter().find(|one| one.pid == of.parent).map_or(0, |one| one.container_pid)
}

/// The command on one line; of a process without words its name, in brackets as ps has it.
fn command(process: &Process) -> String {
    if process.args.is_empty() {
        return text::line(&format!("[{}]", process.name)).into_owned();
    }
    let words: Vec<_> = process.args.iter().map(|word| String::from_utf8_lossy(word)).collect();
    text::line(&words.join(" ")).into_owned()
}

fn row(process: &Process, all: &[Process]) -> [String; 8] {
    let seconds = process.age_ns / 1_000_000_000;
    [
        process.container_pid.to_string(),
        parent(process, all).to_string(),
        process.user.to_string(),
        text::line(&process.state).into_owned(),
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        format!("{:.2}", Duration::from_nanos(process.cpu_ns).as_secs_f64()),
        (process.resident_bytes >> 10).to_string(),
        command(process),
    ]
}

fn as_json(process: &Process, all: &[Process]) -> Value {
    let args: Vec<_> = process.args.iter().map(|word| String::from_utf8_lossy(word)).collect();
    json!({
        "schema": 1, "pid": process.container_pid, "parent": parent(process, all), "guest_pid": process.pid,
        "user": process.user, "state": process.state, "age_ns": process.age_ns, "cpu_ns": process.cpu_ns,
        "resident_bytes": process.resident_bytes, "name": process.name, "args": args,
    })
}

/// Prints how the files of a container differ from its image, as they are found.
pub(crate) fn diff(args: &LookArgs, context: &Context) -> Result<ExitCode> {
    if args.json {
        let mut all = Vec::new();
        look(&args.sandbox, Inspection::Changes, context, |change: Change| {
            let (letter, path) = shown(&change);
            all.push(json!({ "schema": 1, "kind": letter.to_string(), "path": path }));
            Ok(())
        })?;
        out::json(format_args!("{:#}", Value::from(all)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut output = BufWriter::new(stdout().lock());
    let printed = look(&args.sandbox, Inspection::Changes, context, |change: Change| {
        let (letter, path) = shown(&change);
        writeln!(output, "{letter} {}", text::line(&path)).map_err(Error::from)
    });
    match printed.and_then(|()| output.flush().map_err(Error::from)) {
        // The reader has gone.
        Err(error) if is_broken_pipe(&error) => {
            let (_, _unwritten) = output.into_parts();
            Ok(ExitCode::SUCCESS)
        }
        printed => printed.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Its letter, as docker has it, and its path.
fn shown(change: &Change) -> (char, String) {
    let letter = match change.kind.enum_value() {
        Ok(ChangeKind::ADDED) => 'A',
        Ok(ChangeKind::CHANGED) => 'C',
        Ok(ChangeKind::DELETED) => 'D',
        Ok(ChangeKind::UNKNOWN) | Err(_) => '?',
    };
    (letter, std::ffi::OsStr::from_bytes(&change.path).to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_calls_itself_stays_on_its_line() {
        let first = Process { pid: 90, container_pid: 1, args: vec![b"sh".to_vec()], ..Default::default() };
        let hostile = Process {
            pid: 91,
            container_pid: 2,
            parent: 90,
            state: "\u{1b}".into(),
            age_ns: 3_723_000_000_000,
            cpu_ns: 1_230_000_000,
            resident_bytes: 4096,
            args: vec![b"a\nb".to_vec(), b"\x1b[31m\xff".to_vec()],
            ..Default::default()
        };
        let all = [first.clone(), hostile.clone()];
        let row = row(&hostile, &all);
        assert_eq!(&row[..3], ["2", "1", "0"]);
        assert_eq!(&row[4..7], ["01:02:03", "1.23", "4"]);
        assert!(row.iter().flat_map(|cell| cell.chars()).all(|c| !c.is_control()), "{row:?}");
        assert_eq!(parent(&first, &all), 0);
        let kernel = Process { name: "a\nb".into(), ..Default::default() };
        assert_eq!(command(&kernel), "[a\\nb]");
    }
}

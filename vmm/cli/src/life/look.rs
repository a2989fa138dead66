//! `nelly top` and `nelly diff`: what runs in a container, and how its files differ from its image.

use std::collections::HashMap;
use std::io::{BufWriter, ErrorKind, Write, stdout};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};
use nelly_sandbox::agent::Inspection;
use nelly_sandbox::connect::inspect::{Change, ChangeKind, Message, Most, Process, Records, Told};
use nelly_vmm::text;
use serde_json::{Value, json};

use super::args::LookArgs;
use super::{connect, runtime, sandboxes, target};
use crate::context::Context;
use crate::{out, table};

/// What is held of the changes of a container's files.
const CHANGES: Most = Most { records: 1 << 20, bytes: 64 << 20 };

/// Asks the guest about the container that a word names, and gives each record to `take`.
fn look<M: Message>(
    word: &str,
    (what, most): (Inspection, Most),
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
    let mut records: Records = asked?.at_most(most);
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
    look(&args.sandbox, (Inspection::Processes, Most::default()), context, |process: Process| {
        processes.push(Shown::from(process));
        Ok(())
    })?;
    let parents = parents(&processes);
    if args.json {
        out::json_array(processes.iter().map(|one| as_json(one, &parents)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["PID", "PPID", "USER", "STATE", "AGE", "CPU SECONDS", "RSS KiB", "COMMAND"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(processes.iter().map(|one| row(one, &parents)));
    for line in table::aligned(&rows) {
        out::line(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is held of a process. Its words are one string: a guest may send very many short ones.
struct Shown {
    process: Process,
    /// Each ends with a zero byte.
    words: String,
}

impl From<Process> for Shown {
    fn from(mut process: Process) -> Self {
        let words = std::mem::take(&mut process.args).iter().fold(String::new(), |mut words, word| {
            words.push_str(&String::from_utf8_lossy(word));
            words.push('\0');
            words
        });
        // Fields that are not known here are not held.
        process.special_fields = Default::default();
        Self { process, words }
    }
}

impl Shown {
    fn words(&self) -> impl Iterator<Item = &str> {
        self.words.split_terminator('\0')
    }
}

/// The number that each process has in the container, by its number in the guest.
fn parents(all: &[Shown]) -> HashMap<u32, u32> {
    all.iter().map(|one| (one.process.pid, one.process.container_pid)).collect()
}

/// The parent's number in the container; 0 if it is outside of it.
fn parent(of: &Process, parents: &HashMap<u32, u32>) -> u32 {
    parents.get(&of.parent).copied().unwrap_or(0)
}

/// The command on one line; of a process without words its name, in brackets as ps has it.
fn command(shown: &Shown) -> String {
    if shown.words.is_empty() {
        return text::line(&format!("[{}]", shown.process.name)).into_owned();
    }
    let words: Vec<_> = shown.words().collect();
    text::line(&words.join(" ")).into_owned()
}

fn row(shown: &Shown, parents: &HashMap<u32, u32>) -> [String; 8] {
    let process = &shown.process;
    let seconds = process.age_ns / 1_000_000_000;
    [
        process.container_pid.to_string(),
        parent(process, parents).to_string(),
        process.user.to_string(),
        text::line(&process.state).into_owned(),
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        format!("{:.2}", Duration::from_nanos(process.cpu_ns).as_secs_f64()),
        (process.resident_bytes >> 10).to_string(),
        command(shown),
    ]
}

fn as_json(shown: &Shown, parents: &HashMap<u32, u32>) -> Value {
    let (process, args): (_, Vec<_>) = (&shown.process, shown.words().collect());
    json!({
        "schema": 1, "pid": process.container_pid, "parent": parent(process, parents), "guest_pid": process.pid,
        "user": process.user, "state": process.state, "age_ns": process.age_ns, "cpu_ns": process.cpu_ns,
        "resident_bytes": process.resident_bytes, "name": process.name, "args": args,
    })
}

/// Prints how the files of a container differ from its image, as they are found.
pub(crate) fn diff(args: &LookArgs, context: &Context) -> Result<ExitCode> {
    if args.json {
        let mut all = Vec::new();
        look(&args.sandbox, (Inspection::Changes, CHANGES), context, |change: Change| {
            all.push(shown(&change));
            Ok(())
        })?;
        let as_json = |(letter, path): &(char, String)| json!({ "schema": 1, "kind": letter.to_string(), "path": path });
        out::json_array(all.iter().map(as_json))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut output = BufWriter::new(stdout().lock());
    let printed = look(&args.sandbox, (Inspection::Changes, Most::ENDLESS), context, |change: Change| {
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
        let all = [first, hostile].map(Shown::from);
        let parents = parents(&all);
        let row = row(&all[1], &parents);
        assert_eq!(&row[..3], ["2", "1", "0"]);
        assert_eq!(&row[4..7], ["01:02:03", "1.23", "4"]);
        assert!(row.iter().flat_map(|cell| cell.chars()).all(|c| !c.is_control()), "{row:?}");
        assert_eq!(parent(&all[0].process, &parents), 0);
        let kernel = Process { name: "a\nb".into(), ..Default::default() };
        assert_eq!(command(&kernel.into()), "[a\\nb]");
        let empty = Process {
            args: vec![b"a".to_vec(), Vec::new(), b"b".to_vec(), Vec::new()],
            ..Default::default()
        };
        assert_eq!(as_json(&empty.into(), &parents)["args"], json!(["a", "", "b", ""]));
    }
}

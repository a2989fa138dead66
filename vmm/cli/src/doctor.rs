//! `nelly doctor`: checks this host and the installation, and suggests fixes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use nelly_image::{Reference, Store, StoreOptions};
use nelly_sandbox::network::member;
use nelly_sandbox::state::Sandboxes;
use nelly_vmm::machine::Layers;
use nelly_vmm::text;
use serde_json::json;

use crate::advice;
use crate::assets::{self, Asset, Assets};
use crate::context::Context;
use crate::host::{self, HostSupport};
use crate::out;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
struct Finding {
    check: &'static str,
    verdict: Verdict,
    text: String,
    hint: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, text: text.into(), hint: None }
    }

    fn new(check: &'static str, verdict: Verdict, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, verdict, text: text.into(), hint: Some(hint.into()) }
    }
}

/// Runs the verb: exit code 0 when `nelly run` works here, else 1.
pub(crate) fn run(as_json: bool, context: &Context) -> Result<ExitCode> {
    let mut findings = hypervisor();
    findings.extend(installation(context));
    findings.push(confinement(Layers::of_host()));
    findings.push(memory());
    findings.extend(linger(context));
    findings.extend(host::LACKS.iter().map(|it| Finding::new(it.check, Verdict::Warn, it.text, it.hint)));
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    if as_json {
        let rows: Vec<_> = findings
            .iter()
            .map(|finding| {
                let verdict = verdict_name(finding.verdict);
                json!({ "schema": 1, "check": finding.check, "verdict": verdict, "text": finding.text, "hint": finding.hint })
            })
            .collect();
        out::json(serde_json::Value::Array(rows))?;
    } else {
        for finding in &findings {
            out::line(format_args!(
                "{:<5} {:<10} {}",
                verdict_name(finding.verdict),
                finding.check,
                finding.text
            ))?;
            if let Some(hint) = &finding.hint {
                out::line(format_args!("{:<16} -> {hint}", ""))?;
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "fail",
    }
}

/// What `nelly-monitor` and `nelly-unpack` can be confined by.
fn confinement(layers: Layers) -> Finding {
    let Layers { landlock, seccomp, seatbelt } = layers;
    if seatbelt {
        let text = "nelly-monitor gives up files, programs and networks by Seatbelt; nelly-unpack and the process that reads disk images give up nothing here";
        return Finding::new(
            "confine",
            Verdict::Warn,
            text,
            "the profile was never tried on a Mac: where a machine does not start by it, --confine off starts one without",
        );
    }
    let text = format!(
        "nelly-monitor and nelly-unpack give up files by Landlock ({}) and system calls by seccomp ({})",
        if landlock > 0 { format!("version {landlock}") } else { "this host has none".to_owned() },
        if seccomp { "there" } else { "this host has none" },
    );
    let hint = match (landlock, seccomp) {
        (2.., true) => return Finding::ok("confine", text),
        (1, true) => {
            "machines with shared directories, and nelly-unpack, go without Landlock, whose version 1 forbids renames: Linux 5.19 has a newer one"
        }
        (_, true) => {
            "Landlock needs Linux 5.13 or newer, and `landlock` in lsm= of the kernel's command line if that is given"
        }
        (_, false) => "a container that forbids seccomp has to allow it",
    };
    Finding::new("confine", Verdict::Warn, text, hint)
}

fn hypervisor() -> Vec<Finding> {
    let support = host::support();
    let opens = !matches!(support, HostSupport::Unusable(..));
    let mut findings = describe(support);
    if opens {
        findings.extend(probe());
    }
    findings
}

/// Runs tiny guests to test what the processor's flags promise.
fn probe() -> Vec<Finding> {
    use nelly_vmm::hv::{self, probe::probe};
    let hint = || format!("{}; {}", host::PROBE_HINT, advice::another_host());
    let findings = match hv::open().map_err(anyhow::Error::from).and_then(|hv| Ok(probe(&hv)?)) {
        Ok(findings) => findings,
        Err(error) => return vec![Finding::new("probe", Verdict::Fail, format!("{error:#}"), hint())],
    };
    findings
        .into_iter()
        .map(|finding| match finding.trouble {
            None => Finding::ok("probe", format!("{} works in a guest", finding.name)),
            Some(why) => Finding::new("probe", Verdict::Fail, format!("{}: {why}", finding.name), hint()),
        })
        .collect()
}

fn describe(support: HostSupport) -> Vec<Finding> {
    match support {
        HostSupport::Mainstream => vec![Finding::ok(host::CHECK, host::GOOD)],
        HostSupport::Paravirtual => vec![Finding::new(
            host::CHECK,
            Verdict::Fail,
            "/dev/kvm can be opened, but the processor has neither svm nor vmx: this KVM is paravirtual and cannot run a stock kernel",
            advice::another_host(),
        )],
        HostSupport::Unusable(message, hint) => vec![Finding::new(host::CHECK, Verdict::Fail, message, hint)],
    }
}

fn installation(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    let asset = |asset: &Asset| format!("{} ({})", asset.path.display(), asset.source);
    match assets::monitor(&context.search, &context.settings) {
        Ok(monitor) => findings.push(Finding::ok("monitor", asset(&monitor))),
        Err(error) => {
            findings.push(Finding::new("monitor", Verdict::Fail, format!("{error:#}"), advice::install()));
        }
    }
    // It holds the sandboxes that stay.
    match context.search.keeper() {
        Ok(path) => findings.push(Finding::ok("keeper", format!("{} (beside nelly)", path.display()))),
        Err(error) => {
            findings.push(Finding::new("keeper", Verdict::Fail, error.to_string(), advice::install()));
        }
    }
    // Of machines with --net user.
    match context.search.usernet() {
        Ok(path) => findings.push(Finding::ok("usernet", format!("{} (beside nelly)", path.display()))),
        Err(error) => {
            findings.push(Finding::new("usernet", Verdict::Fail, error.to_string(), advice::install()));
        }
    }
    // Of images that are not in the cache yet.
    match context.search.unpacker().find() {
        Ok(path) => findings.push(Finding::ok("unpacker", format!("{} (beside nelly)", path.display()))),
        Err(error) => {
            findings.push(Finding::new("unpacker", Verdict::Fail, error.to_string(), advice::install()));
        }
    }
    // Of networks of machines.
    match context.search.switch() {
        Err(_) if member::supported().is_err() => {}
        Ok(path) => findings.push(Finding::ok("switch", format!("{} (beside nelly)", path.display()))),
        Err(error) => {
            findings.push(Finding::new("switch", Verdict::Fail, error.to_string(), advice::install()));
        }
    }
    match Assets::find(&context.search, &context.settings, None, None) {
        Ok(assets) => {
            findings.push(Finding::ok("kernel", asset(&assets.kernel)));
            findings.push(Finding::ok("initramfs", asset(&assets.initrd)));
            findings.push(builtin(assets.builtin, context));
            findings.extend(storage(context));
            if let (Some(host), Some(build)) = (nelly_sandbox::agent::BUILD, &assets.build_id)
                && host != build
            {
                let text = format!("the assets have build id {build}, nelly has build id {host}");
                findings.push(Finding::new("build", Verdict::Warn, text, advice::install()));
            }
        }
        Err(error) => {
            findings.push(Finding::new("assets", Verdict::Fail, format!("{error:#}"), advice::install()));
        }
    }
    findings
}

/// The image of `nelly run -- COMMAND`, read as a start reads it.
fn builtin(place: Option<PathBuf>, context: &Context) -> Finding {
    let mut options = StoreOptions::new(&context.places.cache);
    options.builtin.clone_from(&place);
    let planned = Store::open(options).and_then(|store| store.plan(&Reference::BuiltinBusybox));
    match (planned, place) {
        (Ok(_), Some(place)) => Finding::ok("image", format!("builtin:busybox, {}", place.display())),
        (Ok(_), None) => Finding::ok("image", "builtin:busybox"),
        (Err(error), _) => Finding::new(
            "image",
            Verdict::Fail,
            format!("builtin:busybox: {}", text::chain(&error)),
            advice::install(),
        ),
    }
}

/// The file that the disks of sandboxes that stay begin as.
fn storage(context: &Context) -> Option<Finding> {
    let (directory, manifest) = assets::manifest(&context.search).ok()?;
    let path = manifest.storage.map(|name| directory.join(name));
    Some(match path {
        Some(path) if path.is_file() => Finding::ok("storage", path.display().to_string()),
        Some(path) => Finding::new(
            "storage",
            Verdict::Fail,
            format!("{} is missing", path.display()),
            advice::install(),
        ),
        None => {
            Finding::new("storage", Verdict::Warn, "the installation has no storage.ext4", advice::install())
        }
    })
}

/// Whether a logout ends sandboxes: systemd removes the directory of their sockets, and may end
/// their processes, unless the user lingers. Nothing where none runs in such a directory.
fn linger(context: &Context) -> Option<Finding> {
    let uid = rustix::process::getuid().as_raw();
    let vanishing = format!("/run/user/{uid}");
    let sandboxes = Sandboxes::open(&context.places.sandboxes()).ok()??;
    let details = sandboxes.list().ok()?.into_iter().filter_map(|one| one.details.ok());
    let runs = details.filter(|details| details.condition.is_live());
    let count =
        runs.filter(|it| it.state.runtime_dir.as_ref().is_some_and(|dir| dir.starts_with(&vanishing)));
    let count = count.count();
    if count == 0 {
        return None;
    }
    let name = user_name(&std::fs::read_to_string("/etc/passwd").ok()?, uid)?;
    if std::path::Path::new("/var/lib/systemd/linger").join(&name).exists() {
        return Some(Finding::ok("linger", format!("{vanishing} stays when {name} logs out")));
    }
    let text = format!(
        "sandboxes that run have their sockets in {vanishing}: {count}; when {name} logs out, it is removed, and they may end"
    );
    Some(Finding::new("linger", Verdict::Warn, text, "loginctl enable-linger"))
}

/// The name of a user in the text of /etc/passwd.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, found) = (fields.next()?, fields.nth(1)?);
        (found.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn memory() -> Finding {
    match nelly_vmm::sys::host::memory_bytes() {
        Ok(bytes) if bytes >= 1 << 30 => Finding::ok("memory", format!("{} MiB", bytes >> 20)),
        Ok(bytes) => {
            let text = format!("{} MiB in total", bytes >> 20);
            Finding::new("memory", Verdict::Warn, text, "a machine has 512M by default; use less with -m")
        }
        Err(error) => Finding::new("memory", Verdict::Warn, format!("unknown: {error}"), "is /proc mounted?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 0).as_deref(), Some("root"));
        assert_eq!(user_name(passwd, 7), None);
    }
}

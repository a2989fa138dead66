//! The last steps: user, limits, capabilities, filter, program.

use std::ffi::{CString, OsStr};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::stat::{Mode, fstat, umask};
use nix::unistd::{AccessFlags, Uid, fchown};

use super::{Named, StageError, init};
use crate::spawn::caps::CapabilitySets;
use crate::spawn::elf;
use crate::spawn::plan::{ProcessPlan, UserPlan};
use crate::spawn::users::{self, UserIdentity};
use crate::sys;

/// The search path if the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Largest part of `/etc/passwd` or `/etc/group` that is read, in bytes.
const LARGEST_FILE: u64 = 4 << 20;

/// Bytes read to find the type of a program; the kernel reads as many of the first line of a
/// script.
const LONGEST_LINE: u64 = 256;

/// CAP_SYS_ADMIN, which is needed to install a filter without no_new_privs.
const SYS_ADMIN: u64 = 1 << 21;

/// Executes the program of the plan. Returns only on an error.
pub(super) fn become_program(
    plan: &ProcessPlan,
    channel: &OwnedFd,
) -> Result<std::convert::Infallible, StageError> {
    sys::join_new_session_keyring().step(|| "make a session keyring".into())?;
    let identity = identity(&plan.user)?;
    let mut environment = plan.env.clone();
    set_home(&mut environment, identity.home.as_deref());
    own_streams(identity.uid);
    let entered = std::env::set_current_dir(&plan.cwd);
    for (resource, soft, hard) in &plan.rlimits {
        sys::set_resource_limit(*resource, *soft, *hard)
            .step(|| format!("set resource limit {resource} to {soft} and {hard}"))?;
    }
    if !plan.rlimits.iter().any(|(resource, ..)| *resource == libc::RLIMIT_NOFILE) {
        usual_open_files().step(|| "limit the number of open files".into())?;
    }
    umask(Mode::from_bits_truncate(plan.umask.unwrap_or(0o022)));
    if plan.no_new_privileges {
        sys::set_no_new_privileges().step(|| "set no_new_privs".into())?;
    }
    let sets = plan.capabilities;
    // To install the filter this process may need a capability that the program must not have.
    let extra = if plan.seccomp.is_some() && !plan.no_new_privileges { SYS_ADMIN } else { 0 };
    sys::capabilities::limit_bounding(sets.bounding).step(|| "limit the capabilities".into())?;
    sys::keep_capabilities().step(|| "keep the capabilities".into())?;
    sys::set_ids(identity.uid, identity.gid, &identity.groups)
        .step(|| format!("become user {} and group {}", identity.uid, identity.gid))?;
    apply(&sets, extra)?;
    if entered.is_err() {
        // The directory may be accessible only to the user.
        std::env::set_current_dir(&plan.cwd)
            .step(|| format!("change to the working directory {}", plan.cwd))?;
    }
    std::env::current_dir()
        .step(|| format!("find the working directory {} inside of the container", plan.cwd))?;

    let program = find_program(&plan.args[0], &environment)?;
    let strings =
        |list: &[String]| list.iter().map(|text| sys::c_string(text)).collect::<io::Result<Vec<CString>>>();
    let args = strings(&plan.args).step(|| "pass the arguments".into())?;
    let env = strings(&environment).step(|| "pass the environment".into())?;
    let path = sys::c_string(&program).step(|| "pass the program".into())?;
    sys::mark_all_close_on_exec().step(|| "close descriptors".into())?;
    if plan.init {
        init::stay(identity.uid, sets, plan.seccomp.as_ref(), plan.terminal.is_some())?;
    }
    sys::send(channel.as_fd(), b"x", None).step(|| "report to the agent".into())?;

    // After this the container's filter applies, so only exec is left to do. Capabilities cannot be
    // dropped any more, because the filter could prevent it. The extra one is dropped by exec
    // itself, which only keeps what the bounding, inheritable and ambient sets allow.
    if let Some(filter) = &plan.seccomp {
        sys::install_seccomp(&filter.program, filter.flags).step(|| "install the seccomp filter".into())?;
    }
    Err(exec_error(&program, &sys::execute(&path, &args, &env)))
}

/// The agent's own limit is high because of its streams. Programs that use select() need a soft
/// limit of 1024, and may raise it.
fn usual_open_files() -> io::Result<()> {
    let (_, hard) = sys::resource_limit(libc::RLIMIT_NOFILE)?;
    let hard = hard.min(524_288);
    sys::set_resource_limit(libc::RLIMIT_NOFILE, hard.min(1024), hard)
}

fn apply(sets: &CapabilitySets, extra: u64) -> Result<(), StageError> {
    sys::capabilities::apply(sets.effective | extra, sets.permitted | extra, sets.inheritable, sets.ambient)
        .step(|| "set the capabilities".into())
}

fn identity(user: &UserPlan) -> Result<UserIdentity, StageError> {
    let passwd = read_small("/etc/passwd");
    let group = read_small("/etc/group");
    let mut identity = if user.name.is_empty() {
        let home = users::home_of(user.uid, &passwd);
        UserIdentity { uid: user.uid, gid: user.gid, groups: user.groups.clone(), home }
    } else {
        let mut identity = users::resolve(&user.name, &passwd, &group)?;
        for gid in &user.groups {
            users::push(&mut identity.groups, *gid);
        }
        identity
    };
    for name in &user.more_groups {
        users::push(&mut identity.groups, users::group_id(name, &group)?);
    }
    Ok(identity)
}

/// Reads a text file of the container; empty if it does not exist or is not a regular file.
fn read_small(path: &str) -> String {
    String::from_utf8_lossy(&head(Path::new(path), LARGEST_FILE)).into_owned()
}

/// Reads the first `most` bytes of a file of the container; empty if it does not exist or is not a
/// regular file (such as a FIFO, which must not block the set-up).
fn head(path: &Path, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    if let Ok(file) = open
        && file.metadata().is_ok_and(|found| found.is_file())
    {
        // Errors are ignored: an incomplete line matches nothing.
        let _ = file.take(most).read_to_end(&mut bytes);
    }
    bytes
}

fn set_home(env: &mut Vec<String>, home: Option<&str>) {
    if env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        return;
    }
    env.retain(|entry| !entry.starts_with("HOME="));
    env.push(format!("HOME={}", home.unwrap_or("/")));
}

/// Changes the owner of the standard streams, so that the user can open them again, for example as
/// /dev/stdout. /dev/null keeps its owner. Errors are ignored.
fn own_streams(uid: u32) {
    let give = |stream: BorrowedFd<'_>| {
        let Ok(found) = fstat(stream) else { return };
        if found.st_uid != uid && found.st_rdev != libc::makedev(1, 3) {
            let _ = fchown(stream, Some(Uid::from_raw(uid)), None);
        }
    };
    give(io::stdin().as_fd());
    give(io::stdout().as_fd());
    give(io::stderr().as_fd());
}

/// Looks up a program as execvpe does: if the name has no slash, in the PATH of the program's
/// environment.
fn find_program(name: &str, env: &[String]) -> Result<String, StageError> {
    if name.contains('/') {
        return match usable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) => Err(exec_error(name, &error)),
        };
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{}/{name}", directory.trim_end_matches('/'));
        if usable(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(StageError::NotFound(format!("{name:?}: executable file not found in PATH ({path})")))
}

fn usable(path: &str) -> io::Result<()> {
    let found = std::fs::metadata(path)?;
    if found.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    nix::unistd::faccessat(nix::fcntl::AT_FDCWD, path, AccessFlags::X_OK, nix::fcntl::AtFlags::AT_EACCESS)
        .map_err(io::Error::from)
}

fn exec_error(program: &str, error: &io::Error) -> StageError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if std::fs::metadata(program).is_ok() => {
            StageError::NotFound(format!("cannot execute {program}: its interpreter is missing: {error}"))
        }
        Some(libc::ENOENT | libc::ENOTDIR) => {
            StageError::NotFound(format!("cannot execute {program}: {error}"))
        }
        Some(libc::ENOEXEC) => {
            let what = foreign(program).map(|(path, what)| format!("{path} {what}"));
            let what = what.unwrap_or_else(|| error.to_string());
            StageError::NotExecutable(format!("cannot execute {program}: {what}"))
        }
        _ => StageError::NotExecutable(format!("cannot execute {program}: {error}")),
    }
}

/// If the program, or the interpreter of a script, is of a type that the guest cannot run: its path
/// and the type.
fn foreign(program: &str) -> Option<(String, String)> {
    let found = head(Path::new(program), LONGEST_LINE);
    match found.strip_prefix(b"#!") {
        Some(line) => {
            let line = line.split(|byte| *byte == b'\n').next()?;
            // The kernel ends the name only at these bytes.
            let mut words = line.split(|byte| b" \t\0".contains(byte));
            let interpreter = Path::new(OsStr::from_bytes(words.find(|word| !word.is_empty())?));
            elf::foreign(&head(interpreter, LONGEST_LINE))
                .map(|what| (interpreter.to_string_lossy().into_owned(), what))
        }
        None => elf::foreign(&found).map(|what| (program.to_owned(), what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn home_is_set_once() {
        let mut env = vec!["A=1".to_owned()];
        set_home(&mut env, Some("/home/app"));
        assert_eq!(env, ["A=1", "HOME=/home/app"]);
        set_home(&mut env, Some("/other"));
        assert_eq!(env.len(), 2);
        let mut env = vec!["HOME=".to_owned()];
        set_home(&mut env, None);
        assert_eq!(env, ["HOME=/"]);
    }

    /// Opening a FIFO like a regular file would block forever.
    #[test]
    fn an_interpreter_is_the_one_that_the_kernel_takes() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        nix::unistd::mkfifo(Path::new(&at("x")), Mode::S_IRWXU).expect("a pipe with a name");
        let small = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0";
        std::fs::write(at("x\x0by"), [&small[..], &[0; 40]].concat()).expect("written");
        let of = |line: String| {
            std::fs::write(at("script"), line).expect("written");
            foreign(&at("script")).map(|(path, _)| path)
        };
        assert_eq!(of(format!("#!{}\n", at("x"))), None);
        assert_eq!(of(format!("#! \t{}\t-a b\n", at("x\x0by"))), Some(at("x\x0by")));
        assert_eq!(of("#!\n".to_owned()), None);
        assert_eq!(foreign(&at("x")), None);
    }

    #[test]
    fn programs_are_found_by_the_programs_own_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        std::fs::write(at("tool"), "#!/bin/sh\n").expect("written");
        std::fs::set_permissions(at("tool"), std::fs::Permissions::from_mode(0o755))
            .expect("made executable");
        std::fs::write(at("text"), "no program").expect("written");
        std::fs::set_permissions(at("text"), std::fs::Permissions::from_mode(0o644)).expect("not executable");
        let env = vec![format!("PATH=/nowhere:{}", at(""))];
        assert_eq!(find_program("tool", &env).expect("found"), at("tool"));
        assert!(matches!(find_program("absent", &env), Err(StageError::NotFound(_))));
        assert!(matches!(find_program(&at("absent"), &env), Err(StageError::NotFound(_))));
        assert!(matches!(find_program(&at("text"), &env), Err(StageError::NotExecutable(_))));
        assert!(matches!(find_program(&at("."), &env), Err(StageError::NotExecutable(_))));
        assert!(matches!(find_program(&at("tool/x"), &env), Err(StageError::NotFound(_))));
    }
}

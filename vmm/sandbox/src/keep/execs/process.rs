//! What process a client asks for.

use nelly_protocol::sandbox::messages as wire;

use crate::spec::{ProcessSpec, SpecError};

/// The process that a request asks for, in a container whose first process is `first`.
///
/// # Errors
/// A word cannot be one, or the directory is not absolute.
pub fn process(first: &ProcessSpec, request: &wire::ExecRequest) -> Result<ProcessSpec, SpecError> {
    match request.args.first() {
        None => return Err(SpecError::NoCommand),
        Some(program) if program.is_empty() => return Err(SpecError::EmptyProgram),
        Some(_) => {}
    }
    if let Some(bad) = request.args.iter().find(|word| word.contains('\0')) {
        return Err(SpecError::Argument(bad.clone()));
    }
    let cwd = if request.cwd.is_empty() { &first.cwd } else { &request.cwd };
    if !cwd.starts_with('/') || cwd.contains('\0') {
        return Err(SpecError::Cwd(cwd.clone()));
    }
    let name = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let mut env = first.env.clone();
    if request.terminal && !env.iter().any(|word| name(word) == "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    for word in &request.env {
        if !word.contains('=') || name(word).is_empty() || word.contains('\0') {
            return Err(SpecError::Env(word.clone()));
        }
        match env.iter_mut().find(|have| name(have) == name(word)) {
            Some(have) => have.clone_from(word),
            None => env.push(word.clone()),
        }
    }
    Ok(ProcessSpec {
        args: request.args.clone(),
        env,
        cwd: cwd.clone(),
        user: if request.user.is_empty() { first.user.clone() } else { request.user.clone() },
        terminal: request.terminal,
        stdin: request.stdin && !request.detach,
        rights: first.rights.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Rights;

    #[test]
    fn an_exec_is_what_the_container_is_but_for_what_is_asked() {
        let first = ProcessSpec {
            args: vec!["first".into()],
            env: vec!["PATH=/bin".into(), "A=1".into()],
            cwd: "/srv".into(),
            user: "web".into(),
            rights: Rights { groups: vec!["audio".into()], ..Rights::default() },
            ..ProcessSpec::default()
        };
        let request = |args: &[&str], env: &[&str]| wire::ExecRequest {
            args: args.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(|word| (*word).to_owned()).collect(),
            ..Default::default()
        };
        let plain = process(&first, &request(&["x", "y"], &["A=2", "B="])).unwrap();
        assert_eq!((plain.cwd.as_str(), plain.user.as_str(), plain.stdin), ("/srv", "web", false));
        assert_eq!(plain.env, ["PATH=/bin", "A=2", "B="]);
        assert_eq!(plain.rights, first.rights);
        let terminal = wire::ExecRequest { terminal: true, stdin: true, ..request(&["sh"], &[]) };
        let terminal = process(&first, &terminal).unwrap();
        assert!(terminal.stdin && terminal.env.contains(&"TERM=xterm".to_owned()));
        for bad in [
            request(&[], &[]),
            request(&[""], &[]),
            request(&["a\0"], &[]),
            request(&["a"], &["A"]),
            request(&["a"], &["=1"]),
        ] {
            assert!(process(&first, &bad).is_err(), "{bad}");
        }
        assert!(process(&first, &wire::ExecRequest { cwd: "tmp".into(), ..request(&["a"], &[]) }).is_err());
    }
}

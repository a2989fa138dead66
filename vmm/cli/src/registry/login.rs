//! `nelly login` and `nelly logout`.

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use nelly_registry::{Credentials, LoginPlace, RegistryError};

use super::args::{LoginArgs, LogoutArgs};
use super::{password, transfer};
use crate::context::Context;
use crate::fail::Usage;
use crate::out;

/// Checks a name and a password with the registry and keeps them.
pub(crate) fn login(args: &LoginArgs, context: &Context) -> Result<ExitCode> {
    let user = match &args.username {
        Some(user) => user.clone(),
        None if args.password_stdin => return Err(Usage::error("--password-stdin needs --username NAME")),
        None => password::ask(&format!("User name for {}", args.registry))?,
    };
    if user.is_empty() || user.contains(':') {
        return Err(Usage::error("--username: the user name is empty, or has a colon in it"));
    }
    let password =
        if args.password_stdin { password::from_stdin()? } else { password::ask_hidden("Password")? };
    if password.is_empty() {
        bail!("the password is empty");
    }
    let client = transfer::client(context);
    let credentials = Credentials::Basic { user: user.clone(), password: password.clone() };
    let checked = client.check_login(&args.registry, &credentials).map_err(|error| match error {
        RegistryError::Denied { host, detail, .. } => {
            anyhow!("{host} does not accept this user name and password{detail}")
        }
        error => error.into(),
    })?;
    let place = client.credentials().login(&args.registry, &user, &password)?;
    if !checked {
        out::message(format_args!("{} asks for no login, so the password was not checked", args.registry));
    }
    if let LoginPlace::File(path) = &place {
        out::message(format_args!(
            "the password is in {}, not encrypted; a credential helper (credsStore in it) keeps it in a keyring",
            path.display()
        ));
    }
    out::line(format_args!("logged in to {} as {user}", args.registry))?;
    Ok(ExitCode::SUCCESS)
}

/// Forgets a name and a password.
pub(crate) fn logout(args: &LogoutArgs, context: &Context) -> Result<ExitCode> {
    let done = transfer::client(context).credentials().logout(&args.registry)?;
    for path in &done.left {
        out::message(format_args!("{} still has credentials for {}", path.display(), args.registry));
    }
    if done.removed > 0 {
        out::line(format_args!("logged out of {}", args.registry))?;
    } else {
        out::line(format_args!("there was no login to {}", args.registry))?;
    }
    Ok(ExitCode::SUCCESS)
}

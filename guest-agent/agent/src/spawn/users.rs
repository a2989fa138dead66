//! Users and groups by name or number, from the container's own `/etc/passwd` and `/etc/group`.
//! Pure: text in, ids out.
//!
//! The agent is static and has no getpwnam; and it must be the container's files that answer, not
//! the guest's. The rules are those that container engines share: the first line that matches by
//! name or number wins; an unknown number is fine, an unknown name is not; a user given without a
//! group gets the groups that list it.

use thiserror::Error;

/// Why a user or group could not be resolved.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UserError {
    /// A name that `/etc/passwd` lacks, or a number that is none.
    #[error("unable to find user {0:?}: no matching entries in passwd file")]
    NoUser(String),
    /// A name that `/etc/group` lacks, or a number that is none.
    #[error("unable to find group {0:?}: no matching entries in group file")]
    NoGroup(String),
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserIdentity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups in order, without repetition.
    pub groups: Vec<u32>,
    /// Home directory from `/etc/passwd`, if the user has a line there.
    pub home: Option<String>,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn passwd_lines(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd { name, uid, gid, home })
    })
}

fn group_lines(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or("") })
    })
}

/// Ids above this are reserved: -1 means "leave unchanged" to the kernel.
const LARGEST_ID: u32 = u32::MAX - 1;

fn number(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id <= LARGEST_ID)
}

/// Resolves an OCI image's `User` (`name|uid[:group|gid]`) against the texts of `/etc/passwd` and
/// `/etc/group`.
///
/// # Errors
/// [`UserError`], naming the part that matched nothing.
pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<UserIdentity, UserError> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) if !group.is_empty() => (user, Some(group)),
        Some((user, _)) => (user, None),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let uid = number(user);
    let line = passwd_lines(passwd).find(|line| line.name == user || Some(line.uid) == uid);
    let mut identity = match (&line, uid) {
        (Some(line), _) => UserIdentity {
            uid: line.uid,
            gid: line.gid,
            groups: Vec::new(),
            home: Some(line.home.to_owned()).filter(|home| !home.is_empty()),
        },
        (None, Some(uid)) => UserIdentity { uid, gid: 0, groups: Vec::new(), home: None },
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    match (wanted_group, line) {
        (Some(wanted), _) => identity.gid = group_id(wanted, group)?,
        (None, Some(line)) => {
            for entry in group_lines(group) {
                if entry.members.split(',').any(|member| member == line.name) {
                    push(&mut identity.groups, entry.gid);
                }
            }
        }
        (None, None) => {}
    }
    Ok(identity)
}

/// The home directory of a user id, if `/etc/passwd` has a line for it.
#[must_use]
pub fn home_of(uid: u32, passwd: &str) -> Option<String> {
    let line = passwd_lines(passwd).find(|line| line.uid == uid)?;
    Some(line.home.to_owned()).filter(|home| !home.is_empty())
}

/// Resolves one group by name or number.
///
/// # Errors
/// [`UserError::NoGroup`].
pub fn group_id(wanted: &str, group: &str) -> Result<u32, UserError> {
    let gid = number(wanted);
    group_lines(group)
        .find(|entry| entry.name == wanted || Some(entry.gid) == gid)
        .map(|entry| entry.gid)
        .or(gid)
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

/// Appends a group that is not there yet.
pub fn push(groups: &mut Vec<u32>, gid: u32) {
    if !groups.contains(&gid) {
        groups.push(gid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken line\nbin:x:1:1:bin:/bin:/sbin/nologin\n\
                          app:x:1000:1001:App,,,:/home/app:/bin/sh\n42:x:77:78::/forty:/bin/sh\nnohome:x:5:5::\n";
    const GROUP: &str = "root:x:0:root\nbin:x:1:root,bin,daemon\nwheel:x:10:root,app\napp:x:1001:\naudio:x:29:app\nempty:x:30\n";

    fn id(uid: u32, gid: u32, groups: &[u32], home: Option<&str>) -> UserIdentity {
        UserIdentity { uid, gid, groups: groups.to_vec(), home: home.map(str::to_owned) }
    }

    #[test]
    fn table_of_users() {
        for (user, expected) in [
            ("root", id(0, 0, &[0, 1, 10], Some("/root"))),
            ("", id(0, 0, &[0, 1, 10], Some("/root"))),
            ("0", id(0, 0, &[0, 1, 10], Some("/root"))),
            ("app", id(1000, 1001, &[10, 29], Some("/home/app"))),
            ("1000", id(1000, 1001, &[10, 29], Some("/home/app"))),
            ("app:bin", id(1000, 1, &[], Some("/home/app"))),
            ("app:", id(1000, 1001, &[10, 29], Some("/home/app"))),
            ("app:4000", id(1000, 4000, &[], Some("/home/app"))),
            (":29", id(0, 29, &[], Some("/root"))),
            ("2000", id(2000, 0, &[], None)),
            ("2000:audio", id(2000, 29, &[], None)),
            ("42", id(77, 78, &[], Some("/forty"))),
            ("nohome", id(5, 5, &[], None)),
        ] {
            assert_eq!(resolve(user, PASSWD, GROUP), Ok(expected), "{user}");
        }
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        assert_eq!(resolve("nobody", PASSWD, GROUP), Err(UserError::NoUser("nobody".into())));
        assert_eq!(resolve("root:none", PASSWD, GROUP), Err(UserError::NoGroup("none".into())));
        assert_eq!(resolve("-1", PASSWD, GROUP), Err(UserError::NoUser("-1".into())));
        assert_eq!(resolve("4294967295", PASSWD, GROUP), Err(UserError::NoUser("4294967295".into())));
        assert_eq!(resolve("0:4294967295", PASSWD, GROUP), Err(UserError::NoGroup("4294967295".into())));
        assert_eq!(resolve("+5", "", ""), Err(UserError::NoUser("+5".into())));
    }

    #[test]
    fn groups_and_homes() {
        assert_eq!(group_id("audio", GROUP), Ok(29));
        assert_eq!(group_id("empty", GROUP), Ok(30));
        assert_eq!(group_id("5000", GROUP), Ok(5000));
        assert_eq!(home_of(1000, PASSWD), Some("/home/app".into()));
        assert_eq!(home_of(3, PASSWD), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(user in ".{0,20}", passwd in "[a-z0-9:,\n#]{0,200}", group in "[a-z0-9:,\n#]{0,200}") {
            if let Ok(identity) = resolve(&user, &passwd, &group) {
                prop_assert!(identity.uid <= LARGEST_ID || passwd.contains("4294967295"));
            }
        }
    }
}

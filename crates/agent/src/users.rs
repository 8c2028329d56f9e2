//! Looks users up in the sandbox's own files, without the C library's name services.

use std::io;

use pinfold_linux::spawn::Credentials;

use crate::root::Root;

/// How much of `/etc/passwd` and of `/etc/group` is looked at.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most supplementary groups; the kernel's own limit.
const GROUPS_MAX: usize = 65_536;
/// Longest text that names a user and a group.
const USER_BYTES_MAX: usize = 256;

/// A user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// It is not in `/etc/passwd`.
    #[error("there is no user `{0}` in the sandbox's /etc/passwd")]
    NoUser(String),
    /// It is not in `/etc/group`.
    #[error("there is no group `{0}` in the sandbox's /etc/group")]
    NoGroup(String),
    /// The text is no user.
    #[error("a user is written `name`, `uid`, `name:group` or `uid:gid`")]
    Malformed,
    /// The file could not be read.
    #[error("cannot read the sandbox's {path}")]
    Read {
        /// Which.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Finds the ids of `name`, `uid`, `name:group` or `uid:gid`; nothing is root.
pub(crate) fn resolve(root: &Root, user: &str) -> Result<Credentials, UserError> {
    if user.len() > USER_BYTES_MAX {
        return Err(UserError::Malformed);
    }
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    if group.is_some_and(str::is_empty) || (user.is_empty() && group.is_some()) {
        return Err(UserError::Malformed);
    }
    let users = read(root, "/etc/passwd")?;
    let found = find_user(&users, if user.is_empty() { "0" } else { user })?;
    let groups = read(root, "/etc/group")?;
    if let Some(group) = group {
        let group = find_group(&groups, group)?;
        return Ok(Credentials {
            user: found.id,
            group,
            groups: vec![group],
        });
    }
    let mut members = vec![found.group];
    if let Some(name) = found.name {
        for (group, _, list) in groups.lines().filter_map(parse_group) {
            let member = list.split(',').any(|member| member == name);
            if member && !members.contains(&group) && members.len() < GROUPS_MAX {
                members.push(group);
            }
        }
    }
    Ok(Credentials {
        user: found.id,
        group: found.group,
        groups: members,
    })
}

/// A missing file is an empty one: numbers can still be used.
fn read(root: &Root, path: &'static str) -> Result<String, UserError> {
    match root.read_small(path, FILE_BYTES_MAX) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(UserError::Read { path, source }),
    }
}

struct User<'a> {
    name: Option<&'a str>,
    id: u32,
    group: u32,
}

fn find_user<'a>(users: &'a str, wanted: &str) -> Result<User<'a>, UserError> {
    let number = wanted.parse::<u32>().ok();
    for line in users.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(_)) = (fields.next(), fields.next()) else {
            continue;
        };
        let ids = (fields.next(), fields.next());
        let (Some(user), Some(group)) = (parse(ids.0), parse(ids.1)) else {
            continue;
        };
        if name == wanted || number == Some(user) {
            return Ok(User {
                name: Some(name),
                id: user,
                group,
            });
        }
    }
    match number {
        // -1 means "keep" to the kernel.
        Some(user) if user != u32::MAX => Ok(User {
            name: None,
            id: user,
            group: 0,
        }),
        _ => Err(UserError::NoUser(wanted.to_owned())),
    }
}

fn find_group(groups: &str, wanted: &str) -> Result<u32, UserError> {
    let named = groups
        .lines()
        .filter_map(parse_group)
        .find(|(_, name, _)| *name == wanted);
    match (named, wanted.parse::<u32>()) {
        (Some((group, ..)), _) => Ok(group),
        (None, Ok(group)) if group != u32::MAX => Ok(group),
        _ => Err(UserError::NoGroup(wanted.to_owned())),
    }
}

fn parse_group(line: &str) -> Option<(u32, &str, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let _password = fields.next()?;
    let group = parse(fields.next())?;
    Some((group, name, fields.next().unwrap_or_default()))
}

fn parse(field: Option<&str>) -> Option<u32> {
    field?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(passwd: &str, group: &str) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::fs::write(directory.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(directory.path().join("etc/group"), group).unwrap();
        let root = Root::open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn every_form_is_understood() {
        let (_directory, root) = root(
            "root:x:0:0::/root:/bin/sh\nbroken\nann:x:1000:100:A:/home/ann:/bin/sh\n",
            "root:x:0:\nusers:x:100:\nwheel:x:10:bob,ann\nbroken:x\nanna:x:11:anna\n",
        );
        let ids = |user| {
            resolve(&root, user)
                .map(|ids| (ids.user, ids.group, ids.groups))
                .map_err(|error| error.to_string())
        };
        assert_eq!(ids(""), Ok((0, 0, vec![0])));
        assert_eq!(ids("ann"), Ok((1000, 100, vec![100, 10])));
        assert_eq!(ids("1000"), Ok((1000, 100, vec![100, 10])));
        assert_eq!(ids("ann:wheel"), Ok((1000, 10, vec![10])));
        assert_eq!(ids("5:6"), Ok((5, 6, vec![6])));
        assert_eq!(ids("77"), Ok((77, 0, vec![0])));
        for bad in [
            "bob",
            "ann:nobody",
            "4294967295",
            ":",
            "ann:",
            ":wheel",
            "-1",
        ] {
            assert!(ids(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pipe_in_place_of_the_file_is_refused() {
        let (directory, root) = root("", "");
        let path = directory.path().join("etc/passwd");
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(resolve(&root, "ann"), Err(UserError::Read { .. })));
    }
}

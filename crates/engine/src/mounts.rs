//! What callers may show of the host in a sandbox, and start one from.

use std::path::{Component, Path, PathBuf};

use pinfold_driver::{HostMount, HostReach};
use pinfold_types::weaken::{Defence, is_off};
use pinfold_types::{ErrorCode, MountSpec, SandboxSpec};
use serde_json::json;

use crate::error::EngineError;

/// Most directories of an allow-list: every sandbox's mounts are held against each.
pub const ALLOWED_MAX: usize = 256;

/// The image that is no path.
const IMAGE_HOST: &str = "host";
/// The word that stands for what a caller owns.
const OWN: &str = "own";

/// Which host paths callers may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountsAllowed {
    /// Over the Unix socket: what the caller owns, or, of the daemon's own user and root, whatever
    /// the daemon reaches.
    pub own: bool,
    /// Everybody over the Unix socket with the rights that they have, and admins over TCP.
    pub directories: Vec<AllowedDirectory>,
}

/// A directory of the host that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedDirectory {
    /// Absolute, without `.` and `..`.
    pub path: PathBuf,
    /// Whether it may be shown writable.
    pub writable: bool,
}

/// An entry of an allow-list is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AllowedError {
    /// It names no directory.
    #[error("`{0}` is neither `own` nor an absolute directory without `..`, as in `/srv/data:ro`")]
    Entry(String),
    /// More than are held against every mount.
    #[error("more than {ALLOWED_MAX} directories are allowed")]
    TooMany,
}

impl Default for MountsAllowed {
    fn default() -> Self {
        Self {
            own: true,
            directories: Vec::new(),
        }
    }
}

impl MountsAllowed {
    /// Reads an allow-list: `own`, or a directory, which `:ro` makes read-only.
    ///
    /// # Errors
    ///
    /// Returns the first entry that is none.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, AllowedError> {
        let mut allowed = Self {
            own: false,
            directories: Vec::new(),
        };
        for entry in entries {
            if entry == OWN {
                allowed.own = true;
                continue;
            }
            let (text, writable) = match entry.strip_suffix(":ro") {
                Some(text) => (text, false),
                None => (entry.strip_suffix(":rw").unwrap_or(entry), true),
            };
            let path = Path::new(text);
            let plain =
                |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
            if !path.is_absolute() || !path.components().all(plain) || text.contains('\0') {
                return Err(AllowedError::Entry(entry.chars().take(256).collect()));
            }
            if allowed.directories.len() == ALLOWED_MAX {
                return Err(AllowedError::TooMany);
            }
            allowed.directories.push(AllowedDirectory {
                path: path.components().collect(),
                writable,
            });
        }
        Ok(allowed)
    }

    /// Finds the longest entry that a path is beneath.
    fn beneath(&self, path: &Path, writable: bool) -> Option<&AllowedDirectory> {
        self.directories
            .iter()
            .filter(|allowed| allowed.writable || !writable)
            .filter(|allowed| path.starts_with(&allowed.path))
            .max_by_key(|allowed| allowed.path.as_os_str().len())
    }
}

/// Whose right to host paths is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A user of this host, over the Unix socket.
    User(u32),
    /// Somebody over TCP.
    Remote {
        /// Whether they administrate this daemon.
        admin: bool,
    },
}

/// What the daemon allows, and whether it can do more than its callers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) allowed: &'a MountsAllowed,
    /// The daemon is root's, and may take the rights of its callers.
    pub(crate) as_root: bool,
}

impl Rules<'_> {
    /// Says how far an asker reaches at a path.
    ///
    /// # Errors
    ///
    /// Refuses a path that nothing allows, whether or not it is there.
    pub(crate) fn reach(
        self,
        asker: Asker,
        path: &str,
        writable: bool,
    ) -> Result<HostReach, EngineError> {
        if is_off(Defence::CallerMounts) {
            return Ok(HostReach::DAEMON);
        }
        let beneath = self.allowed.beneath(Path::new(path), writable);
        let beneath = beneath.map(|allowed| allowed.path.clone());
        let (user, own) = match asker {
            Asker::User(uid) => ((self.as_root && uid != 0).then_some(uid), self.allowed.own),
            Asker::Remote { admin: true } => (None, false),
            Asker::Remote { admin: false } => return Err(refused(asker, path)),
        };
        match (user, own, beneath) {
            (None, true, _) => Ok(HostReach::DAEMON),
            (_, false, None) => Err(refused(asker, path)),
            (user, own, beneath) => Ok(HostReach { user, own, beneath }),
        }
    }

    /// Says the same of every mount of a sandbox.
    ///
    /// # Errors
    ///
    /// As [`Rules::reach`].
    pub(crate) fn mounts(
        self,
        asker: Asker,
        mounts: &[MountSpec],
    ) -> Result<Vec<HostMount>, EngineError> {
        let shown = |mount: &MountSpec| {
            Ok(HostMount {
                reach: self.reach(asker, &mount.source, mount.writable)?,
                mount: mount.clone(),
            })
        };
        mounts.iter().map(shown).collect()
    }

    /// Says the same of the image.
    ///
    /// # Errors
    ///
    /// As [`Rules::reach`].
    pub(crate) fn image(self, asker: Asker, image: &str) -> Result<HostReach, EngineError> {
        if image == IMAGE_HOST {
            return Ok(HostReach::DAEMON);
        }
        self.reach(asker, image, false)
    }

    /// Checks a whole sandbox, before anything is made.
    ///
    /// # Errors
    ///
    /// As [`Rules::reach`]; and names a mount's source that the daemon itself cannot find.
    pub(crate) async fn check(self, asker: Asker, spec: &SandboxSpec) -> Result<(), EngineError> {
        self.image(asker, &spec.image)?;
        let mounts = self.mounts(asker, &spec.mounts)?;
        // Others' paths are only ever looked at with their rights.
        let sources: Vec<String> = mounts
            .into_iter()
            .filter(|shown| shown.reach.is_unlimited())
            .map(|shown| shown.mount.source)
            .collect();
        if sources.is_empty() {
            return Ok(());
        }
        let missing = crate::blocking::run(move || {
            sources.into_iter().find_map(|source| {
                let error = std::fs::metadata(&source).err()?;
                Some((source, error))
            })
        })
        .await;
        match missing {
            None => Ok(()),
            Some((source, error)) => Err(EngineError::new(
                ErrorCode::InvalidArgument,
                format!(
                    "the mount's source `{source}` cannot be used: {}",
                    error.kind()
                ),
            )
            .details(json!({ "source": source }))
            .hint("name an absolute path that is there and readable")),
        }
    }
}

fn refused(asker: Asker, path: &str) -> EngineError {
    let hint = match asker {
        Asker::User(_) => {
            "copy it in with `pinfold cp`, or have the setting `mounts_allowed` name its directory"
        }
        Asker::Remote { .. } => {
            "over TCP only an admin uses host paths, and only those beneath a directory that the \
             daemon's setting `mounts_allowed` names; copy files in with `pinfold cp`"
        }
    };
    EngineError::new(
        ErrorCode::PermissionDenied,
        format!("`{path}` of the host is not for this caller to use"),
    )
    .details(json!({ "path": path }))
    .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allowed: &MountsAllowed) -> Rules<'_> {
        Rules {
            allowed,
            as_root: true,
        }
    }

    const ADMIN: Asker = Asker::Remote { admin: true };
    const REMOTE: Asker = Asker::Remote { admin: false };

    #[test]
    fn an_allow_list_is_read_whole_or_not_at_all() {
        let allowed = MountsAllowed::parse(["own", "/srv/a/", "/srv/b:ro", "/srv/./c:rw"]).unwrap();
        assert!(allowed.own);
        let shown: Vec<_> = allowed
            .directories
            .iter()
            .map(|allowed| (allowed.path.to_str().unwrap(), allowed.writable))
            .collect();
        assert_eq!(
            shown,
            [("/srv/a", true), ("/srv/b", false), ("/srv/c", true)]
        );
        assert!(!MountsAllowed::parse([]).unwrap().own);
        for wrong in ["", "x", "owns", "../x", "/srv/../etc", "/a\0b", ":ro", "~"] {
            assert!(MountsAllowed::parse([wrong]).is_err(), "{wrong:?}");
        }
        let many: Vec<String> = (0..=ALLOWED_MAX).map(|n| format!("/d{n}")).collect();
        let many = many.iter().map(String::as_str);
        assert_eq!(MountsAllowed::parse(many), Err(AllowedError::TooMany));
    }

    #[test]
    fn nobody_reaches_further_than_they_are_allowed() {
        let own = MountsAllowed::default();
        let listed = MountsAllowed::parse(["/srv/data:ro", "/srv/data/open"]).unwrap();
        let both = MountsAllowed::parse(["own", "/srv/data:ro"]).unwrap();
        let beneath = |path: &str, user, own| HostReach {
            user,
            own,
            beneath: Some(path.into()),
        };
        let theirs = HostReach {
            user: Some(7),
            own: true,
            beneath: None,
        };
        let (user, root) = (Asker::User(7), Asker::User(0));
        for (allowed, asker, path, writable, expected) in [
            (&own, root, "/any", true, Some(HostReach::DAEMON)),
            (&own, user, "/any", true, Some(theirs.clone())),
            (&own, ADMIN, "/any", false, None),
            (&own, REMOTE, "/any", false, None),
            (&listed, root, "/any", false, None),
            (&listed, user, "/any", false, None),
            (&listed, user, "/srv/database", false, None),
            (&listed, user, "/srv/data/x", true, None),
            (
                &listed,
                user,
                "/srv/data/x",
                false,
                Some(beneath("/srv/data", Some(7), false)),
            ),
            (
                &listed,
                root,
                "/srv/data",
                false,
                Some(beneath("/srv/data", None, false)),
            ),
            (
                &listed,
                ADMIN,
                "/srv/data",
                false,
                Some(beneath("/srv/data", None, false)),
            ),
            (
                &listed,
                ADMIN,
                "/srv/data/open/x",
                true,
                Some(beneath("/srv/data/open", None, false)),
            ),
            (&listed, ADMIN, "/srv/data", true, None),
            (&listed, REMOTE, "/srv/data", false, None),
            (&both, root, "/srv/data", true, Some(HostReach::DAEMON)),
            (
                &both,
                user,
                "/srv/data",
                false,
                Some(beneath("/srv/data", Some(7), true)),
            ),
            (&both, user, "/srv/data", true, Some(theirs.clone())),
            (&both, ADMIN, "/any", false, None),
        ] {
            let reach = rules(allowed).reach(asker, path, writable).ok();
            assert_eq!(reach, expected, "{asker:?} {path} {writable}");
            let image = rules(allowed).image(asker, path);
            assert!(writable || image.is_ok() == reach.is_some(), "{path}");
        }
    }

    #[test]
    fn the_hosts_programs_are_everybodys_and_a_users_daemon_is_theirs() {
        let none = MountsAllowed::parse([]).unwrap();
        let user = Asker::User(7);
        for asker in [user, Asker::User(0), ADMIN, REMOTE] {
            let reach = rules(&none).image(asker, "host").unwrap();
            assert_eq!(reach, HostReach::DAEMON);
        }
        let own = MountsAllowed::default();
        // A user's own daemon has no rights but that user's.
        let mut plain = rules(&own);
        plain.as_root = false;
        assert_eq!(plain.reach(user, "/any", true).unwrap(), HostReach::DAEMON);
        assert!(plain.reach(ADMIN, "/any", false).is_err());
    }
}

//! What a sandbox may have on this host, written down before it is made.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pinfold_driver::{DriverError, DriverErrorKind, DriverKind, InstanceRecord, RECORD_BYTES_MAX};
use pinfold_linux::cgroup::Group;
use pinfold_types::api::Granted;
use pinfold_types::{MountSpec, Resources, SandboxId, crash_point};
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// Version of [`Claims`]; another one is refused.
pub(crate) const CLAIMS_VERSION: u32 = 1;

/// Whose host ids a sandbox's processes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ids {
    /// A range of its own.
    Range {
        /// The first; nothing while none is taken.
        base: Option<u32>,
    },
    /// All of the caller's subordinate ids.
    Shared,
    /// The caller's id alone.
    Single,
}

/// Where a sandbox's writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DiskKind {
    /// A directory.
    Directory,
    /// A filesystem in a sparse file.
    Image,
    /// Memory.
    Memory,
}

/// Everything that may have to be taken away, and what is needed to find the sandbox again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) version: u32,
    pub(crate) id: SandboxId,
    pub(crate) ids: Ids,
    /// Its cgroup, where the host has one for us.
    pub(crate) group: Option<Group>,
    pub(crate) disk: DiskKind,
    /// Process 1, once it was started.
    pub(crate) process: Option<Process>,
    pub(crate) granted: Granted,
    /// What was asked for, so that a change of what cannot change is seen.
    pub(crate) resources: Resources,
    /// Host paths that came while it lived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mounts: Vec<MountSpec>,
}

impl Claims {
    /// Returns the record that the engine stores.
    pub(crate) fn record(&self) -> InstanceRecord {
        InstanceRecord {
            version: CLAIMS_VERSION,
            driver: DriverKind::Native,
            id: self.id.clone(),
            granted: self.granted.clone(),
            // Plain data; the file beside the sandbox says the same.
            state: serde_json::to_value(self).unwrap_or_default(),
        }
    }

    /// Reads what [`Claims::record`] gave.
    pub(crate) fn from_record(record: &InstanceRecord) -> Result<Self, DriverError> {
        let refuse = |message: String| DriverError::new(DriverErrorKind::InvalidRecord, message);
        if record.driver != DriverKind::Native || record.version != CLAIMS_VERSION {
            return Err(refuse(format!(
                "the record of {} is of driver `{}` in version {}, and this is `native` with {}",
                record.id,
                record.driver.as_str(),
                record.version,
                CLAIMS_VERSION
            )));
        }
        let claims: Self = serde_json::from_value(record.state.clone()).map_err(|source| {
            refuse(format!("the record of {} is not readable", record.id)).caused_by(source)
        })?;
        if claims.id != record.id || claims.version != CLAIMS_VERSION {
            return Err(refuse(format!("the record of {} is of another", record.id)));
        }
        Ok(claims)
    }
}

/// The directory of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    path: PathBuf,
}

impl Home {
    pub(crate) fn new(native: &Path, id: &SandboxId) -> Self {
        Self {
            path: native.join(id.as_str()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Directory that holds `upper` and `work`.
    pub(crate) fn private(&self) -> PathBuf {
        self.path.join("private")
    }

    /// Sparse file with a filesystem.
    pub(crate) fn image(&self) -> PathBuf {
        self.path.join("disk.img")
    }

    /// Directory of the agent's socket.
    pub(crate) fn agent(&self) -> PathBuf {
        self.path.join("agent")
    }

    /// What the agent and the launcher say.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Makes the directory if it is not there.
    pub(crate) fn make(&self) -> Result<(), DriverError> {
        make_private(&self.path)
    }

    /// Writes the claims as a whole: a reader sees the former or these.
    pub(crate) fn store(&self, claims: &Claims) -> Result<(), DriverError> {
        let path = self.path.join("claims.json");
        let partial = self.path.join("claims.json.partial");
        let text = serde_json::to_vec(claims).map_err(io::Error::from);
        text.and_then(|text| {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&partial)?;
            io::Write::write_all(&mut file, &text)?;
            crash_point!("driver.claims_partial");
            fs::rename(&partial, &path)
        })
        .map_err(|source| failed("write", &path, source))
    }

    /// Reads the claims; nothing when there are none or they are not ours to read.
    pub(crate) fn load(&self) -> Option<Claims> {
        let path = self.path.join("claims.json");
        let length = fs::symlink_metadata(&path).ok()?.len();
        if length > RECORD_BYTES_MAX as u64 {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        (claims.version == CLAIMS_VERSION).then_some(claims)
    }
}

/// Makes a directory that only its owner may enter; one that is there is taken.
pub(crate) fn make_private(path: &Path) -> Result<(), DriverError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| failed("make", path, source))
}

/// Describes a failure on one of our own paths.
pub(crate) fn failed(what: &str, path: &Path, source: io::Error) -> DriverError {
    let message = format!("failed to {what} `{}`", path.display());
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DriverError::new(
            DriverErrorKind::ResourceExhausted,
            format!("{message}: the host's disk is full"),
        )
        .hint("free space on the file system of the state directory; nothing was lost"),
        _ => DriverError::new(DriverErrorKind::Internal, message),
    }
    .caused_by(source)
}

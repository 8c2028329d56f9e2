//! Images: from what a caller named to layers and binds of a root filesystem.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use pinfold_driver::{DriverError, DriverErrorKind, ImageRequest, PreparedImage, Progress};
use pinfold_image::{ImageError, ImageRef, ImageRefError, ImageStore, Mapped, Owners, Unpack};
use pinfold_linux::launcher::LauncherIdentity;
use pinfold_linux::launcher::plan::Bind;
use pinfold_linux::reach::Wish;

use crate::driver::Inner;
use crate::reach::{image_out_of_reach, reach_of};

/// Opens the store of images for who this daemon is.
pub(crate) fn open(
    directory: &Path,
    identity: &LauncherIdentity,
    mapped: Arc<dyn Mapped>,
) -> Result<ImageStore, DriverError> {
    let how = match identity {
        LauncherIdentity::Root => Unpack::Here(Owners::Keep),
        LauncherIdentity::Subordinate(_) => Unpack::Mapped(mapped),
        LauncherIdentity::Single => Unpack::Here(Owners::Caller),
    };
    ImageStore::open(directory, how).map_err(describe)
}

/// Makes an image ready. Blocks for as long as unpacking takes.
pub(crate) fn prepare(
    inner: &Inner,
    store: &ImageStore,
    image: &ImageRequest,
    report: pinfold_image::Report<'_>,
) -> Result<PreparedImage, DriverError> {
    let unnamed = |error| no_image(&image.reference, error);
    let prepared = if image.reach.is_unlimited() || image.reference == "host" {
        let named = ImageRef::parse(&image.reference).map_err(unnamed)?;
        store.prepare(&named, report)
    } else {
        // What it is must not be looked for with more rights than the caller's.
        let path = Path::new(&image.reference);
        let opened = reach_of(inner, &image.reach)?
            .open(path, Wish::READ)
            .map_err(|error| image_out_of_reach(&image.reference, error))?;
        let named = ImageRef::of_opened(&image.reference, opened.as_fd()).map_err(unnamed)?;
        store.prepare_opened(&named, opened.as_fd(), report)
    };
    let prepared = prepared.map_err(describe)?;
    Ok(PreparedImage {
        key: prepared.key,
        layers: prepared.layers,
        env: prepared.env,
        workdir: prepared.workdir,
        user: prepared.user,
    })
}

fn no_image(reference: &str, error: ImageRefError) -> DriverError {
    let hint = match &error {
        ImageRefError::Zstd(_) => "unpack it and compress it with gzip, or use a directory",
        ImageRefError::Unknown(_) => "use `host`, a directory, or a .tar or .tar.gz file",
    };
    DriverError::new(
        DriverErrorKind::InvalidImage,
        format!("`{reference}` cannot be used as an image"),
    )
    .hint(hint)
    .caused_by(error)
}

/// Returns the binds that an image brings, whose ids are never mapped.
pub(crate) fn binds(store: &ImageStore, image: &PreparedImage) -> Vec<Bind> {
    store
        .binds_of(&image.key)
        .into_iter()
        .map(|bind| Bind {
            source: bind.source,
            target: bind.target,
            writable: false,
            setuid: false,
            mapped: false,
            reach: None,
        })
        .collect()
}

/// Hands progress on to who waits for it, from another thread.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) what: String,
    pub(crate) done: u64,
    pub(crate) total: Option<u64>,
}

impl Said {
    pub(crate) fn pass_on(self, progress: &dyn Progress) {
        progress.report(&self.what, self.done, self.total);
    }
}

fn describe(error: ImageError) -> DriverError {
    let kind = match &error {
        _ if error.is_out_of_space() => DriverErrorKind::ResourceExhausted,
        ImageError::Invalid { .. } | ImageError::Read { .. } => DriverErrorKind::InvalidImage,
        ImageError::NeedsIds { .. } => DriverErrorKind::NeedsSubids,
        ImageError::Store { .. } | ImageError::Worker(_) | ImageError::WorkerSilent { .. } => {
            DriverErrorKind::Internal
        }
    };
    let described = DriverError::new(kind, "failed to prepare the image").caused_by(error);
    if kind == DriverErrorKind::NeedsSubids {
        return described.hint(crate::probe::SUBIDS_FIX);
    }
    described
}

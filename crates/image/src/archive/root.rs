//! What a directory must have, and must not, to be a sandbox's root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use pinfold_linux::weaken::{Defence, is_off};

use super::invalid::{InvalidImage, shown};

/// Directories that every sandbox mounts something of its own on. A link in their place would lead
/// those mounts elsewhere.
const MOUNTED_ON: &[&str] = &["dev", "proc", "sys", "tmp"];
/// One of these is in every root filesystem of a distribution.
const OF_A_DISTRIBUTION: &[&str] = &["bin", "sbin", "usr", "lib"];
/// How many entries are looked at in search of a program.
const SEARCHED_MAX: usize = 1024;

/// Checks that a directory can be a root, without changing it.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn check_root(directory: &Path) -> Result<(), InvalidImage> {
    let checked = MOUNTED_ON.iter().filter(|_| !is_off(Defence::MountTargets));
    for name in checked {
        let there = fs::symlink_metadata(directory.join(name));
        if there.is_ok_and(|there| !there.is_dir()) {
            let name = (*name).to_owned();
            return Err(InvalidImage::Reserved { name });
        }
    }
    if of_a_distribution(directory) || holds_program(directory) {
        return Ok(());
    }
    if is_layered(directory) {
        return Err(InvalidImage::Layers);
    }
    match only_directory(directory) {
        Some(name) if of_a_distribution(&directory.join(&name)) => Err(InvalidImage::OneDeeper {
            directory: shown(name.as_encoded_bytes()),
        }),
        _ => Err(InvalidImage::NotARoot),
    }
}

fn of_a_distribution(directory: &Path) -> bool {
    OF_A_DISTRIBUTION.iter().any(|name| {
        fs::symlink_metadata(directory.join(name))
            .is_ok_and(|there| there.is_dir() || there.is_symlink())
    })
}

/// Returns whether a program lies at the top or one directory deeper, as in images of one program.
fn holds_program(directory: &Path) -> bool {
    let mut searched = 0;
    let mut deeper = Vec::new();
    let mut listed = vec![directory.to_owned()];
    loop {
        for entry in listed
            .iter()
            .filter_map(|path| fs::read_dir(path).ok())
            .flatten()
            .flatten()
        {
            searched += 1;
            if searched > SEARCHED_MAX {
                return false;
            }
            match entry.metadata() {
                Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
                    return true;
                }
                Ok(found) if found.is_dir() => deeper.push(entry.path()),
                _ => {}
            }
        }
        if listed.first().is_none_or(|first| first != directory) {
            return false;
        }
        listed = std::mem::take(&mut deeper);
    }
}

fn is_layered(directory: &Path) -> bool {
    ["manifest.json", "oci-layout", "index.json"]
        .iter()
        .any(|name| {
            // No link is followed: it would tell its maker what lies where they cannot look.
            fs::symlink_metadata(directory.join(name)).is_ok_and(|there| there.is_file())
        })
}

fn only_directory(directory: &Path) -> Option<std::ffi::OsString> {
    let mut entries = fs::read_dir(directory).ok()?.flatten();
    let first = entries.next()?;
    let alone = entries.next().is_none();
    (alone && first.file_type().is_ok_and(|kind| kind.is_dir())).then(|| first.file_name())
}

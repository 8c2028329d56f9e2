//! Taking away what belongs to no sandbox that the engine knows.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use pinfold_driver::{Disk, DriverError, SweepReport};
use pinfold_types::{ErrorChain, SandboxId, crash_point};

use crate::claims::{Home, failed};
use crate::driver::Inner;
use crate::teardown;

/// Removes every sandbox of this state directory that is not to be kept. Blocks.
pub(crate) fn sweep(inner: &Inner, keep: &HashSet<SandboxId>) -> Result<SweepReport, DriverError> {
    let mut report = SweepReport::default();
    let entries = fs::read_dir(&inner.native).map_err(|e| failed("list", &inner.native, e))?;
    let mut found: BTreeSet<SandboxId> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // A cgroup whose record is lost is still ours by its name.
    let names = inner.host.cgroups.list();
    found.extend(names.iter().filter_map(|name| inner.id_of_group(name)));
    for id in found.into_iter().filter(|id| !keep.contains(id)) {
        let slot = inner.slot(&id);
        let mut live = slot.lock();
        let home = Home::new(&inner.native, &id);
        let mut claims = home.load().unwrap_or_else(|| teardown::unknown(inner, &id));
        let left = teardown::take_away(inner, &mut claims, Disk::Remove);
        crash_point!("driver.swept_one");
        if left.is_empty() {
            *live = None;
            report.removed.push(id);
        }
        let lines = left
            .iter()
            .map(|(what, error)| format!("{what}: {}", ErrorChain(error)));
        report.leftovers.extend(lines);
    }
    inner.ranges.reclaim();
    inner.forget_empty_slots();
    Ok(report)
}

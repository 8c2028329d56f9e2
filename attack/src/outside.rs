//! Every attack that is made from outside a sandbox, by way of the product, in the order in which
//! they run.

use crate::{Attack, Group};

/// Attacks that may be made where nothing is separated: they change nothing, and end by themselves.
pub const HARMLESS: &[&str] = &[
    "root-of-process",
    "host-file",
    "host-processes",
    "host-abstract-socket",
    "host-port",
    "host-name",
    "home-directories",
];

const fn product(
    name: &'static str,
    tries: &'static str,
    defence: &'static str,
    succeeds_without: &'static [&'static str],
) -> Attack {
    Attack {
        name,
        group: Group::Product,
        tries,
        defence,
        succeeds_without,
    }
}

const fn published(
    name: &'static str,
    tries: &'static str,
    defence: &'static str,
    succeeds_without: &'static [&'static str],
) -> Attack {
    Attack {
        group: Group::Published,
        ..product(name, tries, defence, succeeds_without)
    }
}

/// Every attack from outside.
pub const OUTSIDE: &[Attack] = &[
    product(
        "copy-in-pipe",
        "have `cp` wait for ever for a pipe that stands for a file",
        "only files are opened, and without waiting",
        &["file_kinds"],
    ),
    product(
        "copy-in-growing",
        "have `cp` read on as a file grows, so that what is added is taken for further files",
        "each file is cut at the size that was told",
        &["exact_length"],
    ),
    product(
        "copy-out-growing",
        "grow a file while it is copied out, so that what is added is taken for further files",
        "each file is cut at the size that was told",
        &["exact_length"],
    ),
    product(
        "copy-out-setuid",
        "have `cp` make a setuid program on the host",
        "only the nine permission bits are copied",
        &["archive_modes"],
    ),
    product(
        "copy-out-pipe",
        "have `cp` make a pipe on the host that something later waits for",
        "only files, directories and links are made",
        &["archive_kinds"],
    ),
    product(
        "copy-out-names",
        "steer the terminal with the name of a file that `cp` tells of",
        "control characters are shown, not sent",
        &["printable"],
    ),
    product(
        "logs-escapes",
        "steer the terminal of whoever reads `logs`",
        "on a terminal, all but colours is shown, not sent",
        &["printable"],
    ),
    product(
        "long-path",
        "end the daemon with a path of 1 MiB, or fill its memory with one of 192 MiB",
        "bounds of a request's head and of a path",
        &["request_bounds"],
    ),
    product(
        "deep-tree",
        "leave a tree so deep that it can be neither copied nor removed",
        "a bounded depth; removal with a bounded number of descriptors",
        &["tree_bounds"],
    ),
    product(
        "link-loop",
        "have the product follow links in a circle",
        "the agent's bound of links, and the kernel's",
        &["link_bounds"],
    ),
    product(
        "pipe-for-file",
        "have the agent wait for ever for a pipe that stands for a file",
        "only files are opened, and without waiting",
        &["file_kinds"],
    ),
    product(
        "device-for-file",
        "have the agent read `/dev/zero` for ever",
        "only files are read",
        &["file_kinds"],
    ),
    product(
        "large-directory",
        "have a directory of 30,000 entries hold up the agent",
        "pages; one that lists does not hold up others",
        &["list_pages", "answer_bounds"],
    ),
    product(
        "output-flood",
        "fill the daemon's memory with output that nobody reads",
        "bounded buffers; the program waits",
        &["flood_bounds"],
    ),
    product(
        "log-flood",
        "fill the host's disk with output",
        "a bounded journal",
        &["journal_bounds"],
    ),
    product(
        "host-watches",
        "use up the instances of `inotify` that the host's own user has",
        "a bound for each sandbox; as root a user of its own that they are counted for",
        &["watch_bounds"],
    ),
    product(
        "image-absolute",
        "unpack an image's file to an absolute path",
        "names are checked; files are made beneath a directory",
        &["archive_names", "beneath"],
    ),
    product(
        "image-parent",
        "unpack an image's file to a path with `..`",
        "names are checked; files are made beneath a directory",
        &["archive_names", "beneath"],
    ),
    product(
        "image-hard-link",
        "give a file of the host a second name in an image",
        "names are checked; links are made beneath a directory",
        &["archive_names", "beneath"],
    ),
    product(
        "image-device",
        "bring a device in an image",
        "devices are left out; nodev",
        &["archive_kinds", "stack_nodev"],
    ),
    product(
        "image-sparse",
        "fill the disk with an image of 1 KiB that claims 8 EiB of holes",
        "files with holes are refused",
        &["archive_sparse"],
    ),
    product(
        "image-many",
        "hold up the daemon with images of 1,000,000 entries",
        "unpacking has threads of its own and bounded memory",
        &["blocking_threads"],
    ),
    product(
        "liar-silent",
        "answer nothing",
        "each call has a longest time",
        &["agent_patience"],
    ),
    product(
        "liar-endless",
        "answer without end",
        "each answer has a largest size",
        &["answer_bounds"],
    ),
    product(
        "liar-journal",
        "tell events that do not follow each other",
        "each event is checked",
        &["event_checks"],
    ),
    product(
        "liar-identity",
        "list execs that were never started, and of other sandboxes",
        "ids are checked, and looked for in the sandbox's own alone",
        &[],
    ),
    product(
        "liar-metrics",
        "tell metrics that are no numbers, and huge ones",
        "metrics are checked",
        &["metric_checks"],
    ),
    product(
        "liar-texts",
        "steer the terminal with messages of errors and texts of metrics",
        "texts are checked; control characters are shown, not sent",
        &["agent_texts", "printable"],
    ),
    product(
        "liar-sizes",
        "send more of a file than was asked for",
        "bytes are counted, and told beforehand",
        &["byte_counts"],
    ),
    product(
        "liar-archive-absolute",
        "have `cp` write to an absolute path",
        "names are checked; files are made beneath a directory",
        &["archive_names", "beneath"],
    ),
    product(
        "liar-archive-parent",
        "have `cp` write to a path with `..`",
        "names are checked; files are made beneath a directory",
        &["archive_names", "beneath"],
    ),
    product(
        "liar-archive-link",
        "have `cp` write through a link that it made a moment ago",
        "no link is followed",
        &["beneath"],
    ),
    product(
        "liar-archive-hard-link",
        "have `cp` give a file of the host a second name",
        "names are checked; links are made beneath a directory",
        &["archive_names", "beneath"],
    ),
    product(
        "liar-archive-device",
        "have `cp` make a device on the host",
        "only files, directories and links are made",
        &["archive_kinds"],
    ),
    product(
        "liar-archive-sparse",
        "fill the host's disk with 1 KiB that claims 8 EiB of holes",
        "files with holes are refused",
        &["archive_sparse"],
    ),
    product(
        "liar-archive-record",
        "fill the memory of `cp` with a name of 400 MiB",
        "a longest record",
        &["archive_bounds"],
    ),
    product(
        "liar-archive-many",
        "fill the memory of `cp` with 50,000 entries of names of 3,000 bytes",
        "what is remembered of entries is bounded",
        &["archive_bounds"],
    ),
    published(
        "cve-2019-5736",
        "overwrite the agent's program through the process that a script `#!/proc/self/exe` makes",
        "a sealed memory file",
        &[],
    ),
    published(
        "cve-2024-21626",
        "start a program in `/proc/self/fd/N`, where a directory of the host was left open",
        "no directory of the host is open",
        &["descriptors"],
    ),
    published(
        "cve-2025-31133",
        "have masks land elsewhere by an image whose `/dev/null` is a link",
        "a `/dev` of its own; masks are made without the image",
        &["mask_source"],
    ),
    published(
        "cve-2025-52565",
        "have the console land elsewhere by an image whose `/dev/console` is a link",
        "a `/dev` of its own; terminals are passed as descriptors",
        &["own_dev"],
    ),
    published(
        "cve-2025-52881",
        "have writes to `/proc` land elsewhere by an image whose `/proc` is a link",
        "nothing is written to `/proc` by a path of the image",
        &["mount_targets"],
    ),
    published(
        "cve-2026-46703",
        "unpack an image's file through a link of the image to a directory of the host",
        "no link is followed",
        &["beneath"],
    ),
    published(
        "cve-2026-120699",
        "mount a host file that the caller may not read",
        "only root may name mounts of root's daemon; other daemons have their user's rights",
        &["socket_mode", "caller_mounts"],
    ),
    published(
        "cve-2026-77179",
        "have `cp` read a host file by swapping a shared directory for a link while it copies",
        "no link is followed",
        &["beneath"],
    ),
    published(
        "cve-2026-103916",
        "have a second `cp` write through a link that the first one brought to the host",
        "no link is followed",
        &["beneath"],
    ),
];

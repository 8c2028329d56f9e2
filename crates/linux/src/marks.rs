//! Finds the processes of sandboxes on the host, for instance after the daemon was killed.
//!
//! Process 1 of a sandbox is started as `pinfold-agent init ID`, and is process 1 of a pid
//! namespace that is a child of the daemon's. Guests can choose their arguments but can neither
//! make a pid namespace nor become its first process.

use std::fs;
use std::io;
use std::path::Path;

/// Most bytes of a process's arguments that are looked at; a mark is far shorter.
const ARGUMENTS_MAX: usize = 256;

/// Process 1 of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// The sandbox that its arguments name.
    pub id: String,
    /// Process id on the host.
    pub pid: i32,
    /// When it started, in clock ticks since boot: with `pid`, its identity against reuse.
    pub start_time: u64,
    /// Whose it is on the host. Another user's process may pretend anything: compare this.
    pub user: u32,
}

/// Returns process 1 of every sandbox on this host.
///
/// # Errors
///
/// Fails if `/proc` cannot be read. Processes that end meanwhile are left out.
pub fn all() -> io::Result<Vec<Marked>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        found.extend(pid.and_then(look_at));
    }
    Ok(found)
}

/// Returns process 1 of one sandbox; more than one only if an earlier one is still ending.
///
/// # Errors
///
/// As [`all`].
pub fn find(id: &str) -> io::Result<Vec<Marked>> {
    let mut found = all()?;
    found.retain(|marked| marked.id == id);
    Ok(found)
}

/// Returns when a process started, in clock ticks since boot.
///
/// # Errors
///
/// Fails if there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The program's name may hold anything, so fields are counted from its last parenthesis.
fn parse_start_time(stat: &str) -> Option<u64> {
    const FIELDS_BEFORE: usize = 19;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(FIELDS_BEFORE)?.parse().ok()
}

fn look_at(pid: i32) -> Option<Marked> {
    let directory = format!("/proc/{pid}");
    let directory = Path::new(&directory);
    let arguments = fs::read(directory.join("cmdline")).ok()?;
    let id = parse_mark(&arguments)?;
    let start_time = start_time(pid).ok()?;
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let user = first_process_owner(&status)?;
    Some(Marked {
        id: id.to_owned(),
        pid,
        start_time,
        user,
    })
}

fn parse_mark(arguments: &[u8]) -> Option<&str> {
    if arguments.len() > ARGUMENTS_MAX {
        return None;
    }
    let mut words = arguments.split(|&byte| byte == 0);
    if words.next()? != b"pinfold-agent" || words.next()? != b"init" {
        return None;
    }
    let id = std::str::from_utf8(words.next()?).ok()?;
    (!id.is_empty()).then_some(id)
}

/// Returns the owner of a process that is the first of a namespace directly beneath this one.
fn first_process_owner(status: &str) -> Option<u32> {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|rest| rest.trim_start_matches(':').split_whitespace())
    };
    let own = field("NSpid")?.collect::<Vec<_>>();
    if own.len() != 2 || own.last() != Some(&"1") {
        return None;
    }
    field("Uid")?.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_exactly() {
        for (arguments, id) in [
            (&b"pinfold-agent\0init\0abc\0"[..], Some("abc")),
            (b"pinfold-agent\0init\0", None),
            (b"pinfold-agent\0launcher\0abc\0", None),
            (b"other\0init\0abc\0", None),
            (b"pinfold-agent init abc", None),
            (b"", None),
        ] {
            assert_eq!(parse_mark(arguments), id);
        }
        assert_eq!(parse_mark(&[b'a'; ARGUMENTS_MAX + 1]), None);
    }

    #[test]
    fn only_first_processes_count() {
        let status = |pids: &str| format!("Name:\tx\nUid:\t7\t8\t9\t10\nNSpid:\t{pids}\n");
        assert_eq!(first_process_owner(&status("42\t1")), Some(7));
        for others in ["42", "42\t2", "42\t9\t1", ""] {
            assert_eq!(first_process_owner(&status(others)), None, "{others}");
        }
    }

    #[test]
    fn names_cannot_shift_the_start_time() {
        let fields = (3..=30).map(|number| number.to_string());
        let fields = fields.collect::<Vec<_>>().join(" ");
        assert_eq!(parse_start_time(&format!("1 (a) b) 9) {fields}")), Some(22));
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).unwrap() > 0);
    }
}

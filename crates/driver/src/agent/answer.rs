//! Checks what an agent answers before anybody uses it: an agent may be hostile.

use pinfold_agent_api::v1;
use pinfold_types::api::{FileInfo, Metrics};
use pinfold_types::weaken::{Defence, is_off};
use pinfold_types::{EventKind, ExecEvent, ExecExit, OutputStream};

use super::{AgentError, AgentExec, WatchEvent};

/// Most execs that one answer may list.
pub(super) const EXECS_MAX: usize = 10_000;
/// Most entries of one page of a directory, as the contract says.
pub(super) const ENTRIES_MAX: u32 = 1000;
/// Most bytes of a path, `PATH_MAX` of Linux.
const PATH_BYTES_MAX: usize = 4096;
/// Most bytes of a name. `NAME_MAX` is 255; each byte that is not UTF-8 becomes three.
const NAME_BYTES_MAX: usize = 3 * 255;
/// Most bytes of a tag, far more than the engine gives.
const TAG_BYTES_MAX: usize = 4096;
/// Most bytes of a text in the metrics.
const METRIC_TEXT_BYTES_MAX: usize = 64;

/// Follows a journal and refuses what does not continue it.
#[derive(Debug)]
pub(super) struct JournalCheck {
    next: u64,
    ended: bool,
}

impl JournalCheck {
    pub(super) fn from_seq(from_seq: u64) -> Self {
        Self {
            next: from_seq.max(1),
            ended: false,
        }
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    pub(super) fn accept(&mut self, event: v1::Event) -> Result<ExecEvent, AgentError> {
        use v1::event::Kind;
        let unchecked = is_off(Defence::EventChecks);
        let expected = if unchecked { event.sequence } else { self.next };
        if self.ended && !unchecked {
            return Err(AgentError::broken_contract("an event follows the exit"));
        }
        let kind = match event.kind {
            None => return Err(AgentError::broken_contract("an event says nothing")),
            Some(Kind::Dropped(dropped)) => {
                return self.accept_dropped(event.time_ms, dropped.first_kept);
            }
            Some(Kind::Started(started)) => EventKind::Start { pid: started.pid },
            Some(Kind::Output(output)) => EventKind::Output {
                stream: stream_name(output.stream)?,
                data: output.data,
            },
            Some(Kind::Exited(exited)) => EventKind::Exit(exit(*exited)),
        };
        if event.sequence != expected {
            return Err(AgentError::broken_contract(format!(
                "event {expected} was expected and {} came",
                event.sequence
            )));
        }
        self.next = following(expected)?;
        self.ended = matches!(kind, EventKind::Exit(_));
        Ok(ExecEvent {
            seq: expected,
            time_ms: event.time_ms,
            kind,
        })
    }

    fn accept_dropped(&mut self, time_ms: i64, first_kept: u64) -> Result<ExecEvent, AgentError> {
        let expected = self.next;
        if first_kept <= expected || first_kept == u64::MAX {
            return Err(AgentError::broken_contract(format!(
                "event {expected} was expected and the first kept one is {first_kept}"
            )));
        }
        self.next = first_kept;
        Ok(ExecEvent {
            seq: expected,
            time_ms,
            kind: EventKind::Dropped { first_kept },
        })
    }
}

fn following(seq: u64) -> Result<u64, AgentError> {
    seq.checked_add(1)
        .ok_or_else(|| AgentError::broken_contract("a sequence number is the last there is"))
}

fn stream_name(name: buffa::EnumValue<v1::StreamName>) -> Result<OutputStream, AgentError> {
    match name.as_known() {
        Some(v1::StreamName::STREAM_NAME_STDOUT) => Ok(OutputStream::Stdout),
        Some(v1::StreamName::STREAM_NAME_STDERR) => Ok(OutputStream::Stderr),
        _ => Err(AgentError::broken_contract("output is of no known stream")),
    }
}

fn exit(exited: v1::Exited) -> ExecExit {
    let used = exited.r#use.into_option().unwrap_or_default();
    ExecExit {
        code: exited.code,
        signal: exited.signal,
        timed_out: exited.timed_out,
        out_of_memory: exited.out_of_memory,
        lost: false,
        user_time_us: used.user_time_us,
        system_time_us: used.system_time_us,
        memory_max_bytes: used.memory_max_bytes,
    }
}

pub(super) fn execs(list: v1::ListResponse) -> Result<Vec<AgentExec>, AgentError> {
    if list.execs.len() > EXECS_MAX {
        return Err(AgentError::broken_contract(format!(
            "it lists {} execs, and the limit is {EXECS_MAX}",
            list.execs.len()
        )));
    }
    list.execs.into_iter().map(exec).collect()
}

fn exec(info: v1::ExecInfo) -> Result<AgentExec, AgentError> {
    let exec_id = info
        .exec_id
        .parse()
        .map_err(|_| AgentError::broken_contract("an exec's id is not an id"))?;
    if info.tag.len() > TAG_BYTES_MAX {
        return Err(AgentError::broken_contract("a tag is too long"));
    }
    if info.first_sequence > info.last_sequence.saturating_add(1) {
        return Err(AgentError::broken_contract(
            "a journal begins behind its end",
        ));
    }
    Ok(AgentExec {
        exec_id,
        tag: info.tag,
        pid: info.pid,
        running: info.running,
        first_seq: info.first_sequence,
        last_seq: info.last_sequence,
        arguments: info.arguments,
    })
}

/// Checks the metadata of one file, whatever its name is.
pub(super) fn file(info: v1::FileInfo) -> Result<FileInfo, AgentError> {
    use v1::FileKind as Kind;
    if info.name.len() > NAME_BYTES_MAX || info.name.contains('\0') {
        return Err(AgentError::broken_contract("a file's name is too long"));
    }
    if info.link_target.len() > 3 * PATH_BYTES_MAX {
        return Err(AgentError::broken_contract("a link's target is too long"));
    }
    let kind = match info.kind.as_known() {
        Some(Kind::FILE_KIND_FILE) => "file",
        Some(Kind::FILE_KIND_DIRECTORY) => "directory",
        Some(Kind::FILE_KIND_SYMLINK) => "symlink",
        Some(Kind::FILE_KIND_FIFO) => "fifo",
        Some(Kind::FILE_KIND_SOCKET) => "socket",
        Some(Kind::FILE_KIND_DEVICE) => "device",
        _ => return Err(AgentError::broken_contract("a file is of no known kind")),
    };
    Ok(FileInfo {
        name: info.name,
        kind: kind.to_owned(),
        size: info.size,
        mode: info.mode & 0o7777,
        uid: info.uid,
        gid: info.gid,
        modified_ms: info.modified_ms,
        link_target: info.link_target,
    })
}

/// Checks one page of a directory: names are single components, in order, and not too many.
pub(super) fn page(
    answer: v1::ListDirectoryResponse,
    after: &str,
    limit: u32,
) -> Result<(Vec<FileInfo>, bool), AgentError> {
    let limit = match page_limit(limit) {
        0 => ENTRIES_MAX,
        limit => limit,
    };
    if answer.entries.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
        return Err(AgentError::broken_contract(format!(
            "a page has {} entries, and {limit} were asked for",
            answer.entries.len()
        )));
    }
    if answer.more && answer.entries.is_empty() {
        return Err(AgentError::broken_contract(
            "an empty page says that more follows",
        ));
    }
    let mut before = after.to_owned();
    let mut entries = Vec::with_capacity(answer.entries.len());
    for info in answer.entries {
        let info = file(info)?;
        if info.name.is_empty() || info.name == "." || info.name == ".." || info.name.contains('/')
        {
            return Err(AgentError::broken_contract(
                "an entry's name is not one path component",
            ));
        }
        if info.name <= before {
            return Err(AgentError::broken_contract(
                "a page is not in the order of its names",
            ));
        }
        before.clone_from(&info.name);
        entries.push(info);
    }
    Ok((entries, answer.more))
}

/// Returns how many entries of a directory may be asked for.
pub(super) fn page_limit(wanted: u32) -> u32 {
    if is_off(Defence::ListPages) {
        return u32::MAX;
    }
    wanted.min(ENTRIES_MAX)
}

pub(super) fn watch(event: v1::WatchEvent) -> Result<WatchEvent, AgentError> {
    if event.directory.len() > 3 * PATH_BYTES_MAX || event.name.len() > NAME_BYTES_MAX {
        return Err(AgentError::broken_contract("a watched path is too long"));
    }
    Ok(WatchEvent {
        directory: event.directory,
        name: event.name,
        mask: event.mask,
        cookie: event.cookie,
    })
}

pub(super) fn metrics(answer: v1::MetricsResponse) -> Result<Metrics, AgentError> {
    if is_off(Defence::MetricChecks) {
        return Ok(plain(answer));
    }
    for text in [&answer.uptime, &answer.timestamp] {
        if text.len() > METRIC_TEXT_BYTES_MAX || text.contains(char::is_control) {
            return Err(AgentError::broken_contract(
                "a text of the metrics is not one",
            ));
        }
    }
    for share in [
        answer.cpu_percent,
        answer.memory_percent,
        answer.disk_percent,
    ] {
        if !share.is_finite() || share < 0.0 {
            return Err(AgentError::broken_contract("a share is not a number"));
        }
    }
    Ok(plain(answer))
}

fn plain(answer: v1::MetricsResponse) -> Metrics {
    Metrics {
        uptime: answer.uptime,
        uptime_seconds: answer.uptime_seconds,
        cpu_percent: answer.cpu_percent,
        memory_mb: answer.memory_mb,
        memory_percent: answer.memory_percent,
        disk_free_mb: answer.disk_free_mb,
        disk_percent: answer.disk_percent,
        timestamp: answer.timestamp,
        memory_limit_mb: answer.memory_limit_mb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(sequence: u64) -> v1::Event {
        v1::Event {
            sequence,
            kind: Some(
                v1::Output {
                    stream: v1::StreamName::STREAM_NAME_STDOUT.into(),
                    data: vec![1],
                    ..v1::Output::default()
                }
                .into(),
            ),
            ..v1::Event::default()
        }
    }

    fn dropped(first_kept: u64) -> v1::Event {
        v1::Event {
            kind: Some(
                v1::Dropped {
                    first_kept,
                    ..v1::Dropped::default()
                }
                .into(),
            ),
            ..v1::Event::default()
        }
    }

    #[test]
    fn a_journal_goes_on_without_gaps_or_repeats() {
        let mut check = JournalCheck::from_seq(0);
        assert_eq!(check.accept(output(1)).unwrap().seq, 1);
        assert!(check.accept(output(3)).is_err());
        assert!(check.accept(output(1)).is_err());
        assert_eq!(check.accept(output(2)).unwrap().seq, 2);
    }

    #[test]
    fn what_was_dropped_lies_ahead() {
        let mut check = JournalCheck::from_seq(5);
        assert!(check.accept(dropped(5)).is_err());
        assert!(check.accept(dropped(u64::MAX)).is_err());
        let event = check.accept(dropped(9)).unwrap();
        assert_eq!(
            (event.seq, event.kind),
            (5, EventKind::Dropped { first_kept: 9 })
        );
        assert_eq!(check.accept(output(9)).unwrap().seq, 9);
    }

    #[test]
    fn nothing_follows_the_exit() {
        let mut check = JournalCheck::from_seq(1);
        let exited = v1::Event {
            sequence: 1,
            kind: Some(v1::Exited::default().into()),
            ..v1::Event::default()
        };
        check.accept(exited).unwrap();
        assert!(check.ended());
        assert!(check.accept(output(2)).is_err());
    }

    #[test]
    fn a_journal_at_the_end_of_numbers_is_refused() {
        let mut check = JournalCheck::from_seq(u64::MAX);
        assert!(check.accept(output(u64::MAX)).is_err());
    }

    fn entry(name: &str) -> v1::FileInfo {
        v1::FileInfo {
            name: name.to_owned(),
            kind: v1::FileKind::FILE_KIND_FILE.into(),
            ..v1::FileInfo::default()
        }
    }

    #[test]
    fn pages_are_ordered_bounded_and_of_plain_names() {
        let check = |names: &[&str], after: &str, limit: u32| {
            let answer = v1::ListDirectoryResponse {
                entries: names.iter().map(|name| entry(name)).collect(),
                ..v1::ListDirectoryResponse::default()
            };
            page(answer, after, limit)
        };
        assert!(check(&["a", "b"], "", 0).is_ok());
        assert!(check(&["b", "a"], "", 0).is_err());
        assert!(check(&["a", "a"], "", 0).is_err());
        assert!(check(&["a"], "a", 0).is_err());
        assert!(check(&["a", "b"], "", 1).is_err());
        for name in ["", ".", "..", "a/b", "/", "a\0"] {
            assert!(check(&[name], "", 0).is_err(), "{name:?}");
        }
    }

    #[test]
    fn metrics_are_numbers() {
        let answer = |cpu_percent| v1::MetricsResponse {
            cpu_percent,
            ..v1::MetricsResponse::default()
        };
        assert!(metrics(answer(1.5)).is_ok());
        assert!(metrics(answer(f64::NAN)).is_err());
        assert!(metrics(answer(f64::INFINITY)).is_err());
        assert!(metrics(answer(-1.0)).is_err());
    }
}

//! How sandboxes, reports and findings look as text.

use std::fmt::Write as _;

use owo_colors::OwoColorize as _;
use pinfold_types::api::{
    DoctorReport, ReportLine, Sandbox, format_time_ms, now_ms, parse_time_ms,
};
use pinfold_types::doctor::{Finding, FindingStatus};
use pinfold_types::spec::IsolationTier;

use crate::printer::printable;
use crate::table::{Column, render};

/// Longest reason in a table that is not cut to a terminal's width; `--json` has all of it.
const REASON_CHARACTERS_MAX: usize = 32;

/// Writes the table of `list`.
pub(crate) fn sandboxes(sandboxes: &[Sandbox], width: Option<usize>) -> String {
    const COLUMNS: &[Column] = &[
        Column::cut("NAME"),
        Column::left("ID"),
        Column::left("STATE"),
        Column::cut("IMAGE"),
        Column::left("AGE"),
    ];
    let now = now_ms();
    let rows: Vec<Vec<String>> = sandboxes
        .iter()
        .map(|sandbox| {
            vec![
                sandbox.name.to_string(),
                sandbox.id.to_string(),
                sandbox.state.to_string(),
                sandbox.spec.image.clone(),
                parse_time_ms(&sandbox.created_at)
                    .map_or_else(|| "?".to_owned(), |then| duration(now.saturating_sub(then))),
            ]
        })
        .collect();
    render(COLUMNS, &rows, width)
}

/// Writes the table of `report`; what has no metrics is shown as dead, with the reason.
pub(crate) fn report(lines: &[ReportLine], width: Option<usize>) -> String {
    const COLUMNS: &[Column] = &[
        Column::cut("NAME"),
        Column::right("CPU"),
        Column::right("MEMORY"),
        Column::right("DISK"),
        Column::cut("UPTIME"),
    ];
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let name = line.name.to_string();
            let Some(metrics) = &line.metrics else {
                let reason = line.error.as_deref().unwrap_or("its agent does not answer");
                let word = dead_word(line);
                let reason = if reason == word {
                    reason.to_owned()
                } else {
                    format!("{word}: {reason}")
                };
                let reason = match width {
                    Some(_) => reason,
                    // Without a terminal no name is cut, so that this must be.
                    None => reason.chars().take(REASON_CHARACTERS_MAX).collect(),
                };
                return vec![name, none(), none(), none(), reason];
            };
            let limit = metrics.memory_limit_mb;
            let memory = if limit == 0 {
                format!("{}MiB", metrics.memory_mb)
            } else {
                format!("{}/{limit}MiB", metrics.memory_mb)
            };
            vec![
                name,
                format!("{:.1}%", metrics.cpu_percent),
                memory,
                format!("{:.1}%", metrics.disk_percent),
                metrics.uptime.clone(),
            ]
        })
        .collect();
    render(COLUMNS, &rows, width)
}

fn dead_word(line: &ReportLine) -> &'static str {
    use pinfold_types::SandboxState as State;
    match line.state {
        State::Creating | State::Starting => "starting",
        State::Paused => "paused",
        State::Stopping | State::Stopped | State::Removing => "stopped",
        State::Running | State::Failed => "dead",
    }
}

/// Writes one sandbox in full.
pub(crate) fn sandbox(sandbox: &Sandbox) -> String {
    let spec = &sandbox.spec;
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _infallible = writeln!(text, "{:<12}{}", format!("{label}:"), printable(value));
    };
    line("name", sandbox.name.as_str());
    line("id", sandbox.id.as_str());
    line("state", sandbox.state.as_str());
    if let Some(reason) = &sandbox.reason {
        line("reason", reason);
    }
    line("owner", &sandbox.owner.to_string());
    line("image", &spec.image);
    if let Some(language) = spec.language {
        line("language", language.as_str());
    }
    if let Some(template) = &sandbox.template {
        let origin = sandbox.origin.as_str();
        let text = format!("{} version {}, {origin}", template.name, template.version);
        line("template", &text);
    }
    if let Some(reason) = &sandbox.cold_reason {
        line("cold", reason);
    }
    line("created", &sandbox.created_at);
    line("changed", &sandbox.changed_at);
    for mount in &spec.mounts {
        let mode = if mount.writable { "rw" } else { "ro" };
        line(
            "mount",
            &format!("{}:{}:{mode}", mount.source, mount.target),
        );
    }
    if spec.persist {
        line("persist", "/persist");
    }
    if let Some(lifetime) = spec.deadlines.lifetime_ms {
        line(
            "lifetime",
            &duration(i64::try_from(lifetime).unwrap_or(i64::MAX)),
        );
    }
    if let Some(idle) = spec.deadlines.idle_ms {
        line("idle", &duration(i64::try_from(idle).unwrap_or(i64::MAX)));
    }
    for (name, value) in &spec.labels {
        line("label", &format!("{name}={value}"));
    }
    if let Some(granted) = &sandbox.granted {
        line("driver", &granted.driver);
        line("isolation", tier(granted.isolation));
        line("ids", &granted.ids);
        for (name, value) in &granted.limits {
            line("limit", &format!("{name} {value}"));
        }
        for note in &granted.notes {
            line("note", note);
        }
    }
    text
}

/// Writes what `doctor` found, and below it what mends what is missing.
pub(crate) fn doctor(report: &DoctorReport, width: Option<usize>) -> String {
    const COLUMNS: &[Column] = &[
        Column::left("CHECK"),
        Column::left("STATUS"),
        Column::cut("DETAIL"),
    ];
    let rows: Vec<Vec<String>> = report
        .findings
        .iter()
        .map(|finding| {
            vec![
                finding.name.clone(),
                status_word(finding.status).to_owned(),
                finding.detail.clone(),
            ]
        })
        .collect();
    let mut text = render(COLUMNS, &rows, width);
    let tiers: Vec<&str> = report.tiers.iter().map(|known| tier(*known)).collect();
    let tiers = if tiers.is_empty() {
        "none".to_owned()
    } else {
        tiers.join(", ")
    };
    let _infallible = writeln!(text, "\nisolation tiers of this host: {tiers}");
    let fixes: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|finding| finding.status != FindingStatus::Ok && finding.fix.is_some())
        .collect();
    for (index, finding) in fixes.iter().enumerate() {
        let told = fixes.iter().take(index);
        if told.into_iter().any(|earlier| earlier.fix == finding.fix) {
            continue;
        }
        // One command may mend many things; it stands beneath all of them, once.
        for same in fixes.iter().filter(|same| same.fix == finding.fix) {
            let _infallible = write!(
                text,
                "\n{} {}: {}",
                "mend".bold(),
                printable(&same.name).bold(),
                printable(&same.detail),
            );
        }
        let fix = indented(finding.fix.as_deref().unwrap_or_default());
        let _infallible = writeln!(text, "\n{fix}");
    }
    text
}

fn indented(text: &str) -> String {
    printable(text)
        .lines()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn status_word(status: FindingStatus) -> &'static str {
    match status {
        FindingStatus::Ok => "ok",
        FindingStatus::Degraded => "degraded",
        FindingStatus::Missing => "missing",
    }
}

fn tier(tier: IsolationTier) -> &'static str {
    match tier {
        IsolationTier::None => "none",
        IsolationTier::Namespace => "namespace",
        IsolationTier::Gvisor => "gvisor",
        IsolationTier::Vm => "vm",
    }
}

/// Writes milliseconds for people, with the two largest units.
pub(crate) fn duration(milliseconds: i64) -> String {
    let seconds = milliseconds.max(0) / 1000;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    if days > 0 {
        format!("{days}d {hours}h")
    } else if hours > 0 {
        format!("{hours}h {minutes}m")
    } else if minutes > 0 {
        format!("{minutes}m {rest}s")
    } else {
        format!("{rest}s")
    }
}

/// Writes a duration as it was meant, in the largest unit that holds it whole.
pub(crate) fn exact(milliseconds: u64) -> String {
    let units = [("h", 3_600_000), ("min", 60_000), ("s", 1000)];
    units
        .into_iter()
        .find(|(_, unit)| milliseconds >= *unit && milliseconds.is_multiple_of(*unit))
        .map_or_else(
            || format!("{milliseconds} ms"),
            |(name, unit)| format!("{} {name}", milliseconds / unit),
        )
}

/// Writes a size with a space before its unit.
pub(crate) fn size(size: pinfold_types::ByteSize) -> String {
    let text = size.to_string();
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    format!("{number} {unit}")
}

/// Writes a time for the start of a log line.
pub(crate) fn timestamp(time_ms: i64) -> String {
    format_time_ms(time_ms)
}

#[cfg(test)]
mod tests {
    use pinfold_types::api::Metrics;
    use pinfold_types::{SandboxId, SandboxState};

    use super::*;

    fn line(name: &str, metrics: Option<Metrics>, error: Option<&str>) -> ReportLine {
        ReportLine {
            id: SandboxId::new(),
            name: name.parse().unwrap(),
            state: SandboxState::Running,
            metrics,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn a_report_fits_eighty_columns_and_shows_the_dead() {
        let metrics = Metrics {
            uptime: "2m 34s".to_owned(),
            cpu_percent: 2.31,
            memory_mb: 145,
            memory_limit_mb: 2048,
            disk_percent: 15.2,
            ..Metrics::default()
        };
        let long = "the agent did not answer within two seconds and may be gone for ever";
        let lines = [
            line("python-quiet-otter", Some(metrics), None),
            line(&"n".repeat(42), None, Some(long)),
        ];
        let text = report(&lines, Some(80));
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(text.contains("145/2048MiB") && text.contains("2.3%") && text.contains("2m 34s"));
        assert!(text.contains("dead: "), "{text}");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn a_command_that_mends_two_things_is_told_once() {
        let finding = |name: &str, fix: &str| Finding {
            name: name.to_owned(),
            status: FindingStatus::Missing,
            detail: format!("no {name}"),
            fix: Some(fix.to_owned()),
        };
        let report = DoctorReport {
            findings: vec![
                finding("memory", "delegate it"),
                finding("ids", "add them"),
                finding("cpu", "delegate it"),
            ],
            tiers: Vec::new(),
        };
        let text = doctor(&report, None);
        assert_eq!(text.matches("delegate it").count(), 1, "{text}");
        assert!(
            text.contains("no memory") && text.contains("no cpu"),
            "{text}"
        );
        assert_eq!(text.matches("mend").count(), 3, "{text}");
    }

    #[test]
    fn every_fix_is_printed_whole() {
        let fix = "sudo systemctl set-property user-1000.slice Delegate=yes # a very long command line that is not cut";
        let report = DoctorReport {
            findings: vec![Finding {
                name: "cgroup.memory".to_owned(),
                status: FindingStatus::Degraded,
                detail: "no cgroup is delegated to this user".to_owned(),
                fix: Some(fix.to_owned()),
            }],
            tiers: vec![IsolationTier::Namespace],
        };
        let text = doctor(&report, Some(40));
        assert!(
            text.contains(fix) && text.contains("tiers of this host: namespace"),
            "{text}"
        );
    }

    #[test]
    fn durations_have_two_units() {
        for (ms, text) in [
            (-5, "0s"),
            (59_999, "59s"),
            (61_000, "1m 1s"),
            (90_061_000, "1d 1h"),
        ] {
            assert_eq!(duration(ms), text);
        }
        for (ms, text) in [
            (500, "500 ms"),
            (1000, "1 s"),
            (90_000, "90 s"),
            (7_200_000, "2 h"),
        ] {
            assert_eq!(exact(ms), text);
        }
        assert_eq!(size(pinfold_types::ByteSize::from_mib(64)), "64 MiB");
    }
}

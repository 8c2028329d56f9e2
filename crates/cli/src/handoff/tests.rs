use std::collections::BTreeSet;

use super::rules::Rule;
use super::*;

fn look(path: &str, content: &str) -> Vec<&'static str> {
    let mut handoff = Handoff::new(Path::new("/home/a"), true);
    let decision = handoff.file(Path::new(path), 0o644, content.as_bytes());
    let found = handoff.finish();
    assert_eq!(decision.take, found.findings.is_empty(), "{path}");
    assert_eq!(found.held, found.findings.len() as u64, "{path}");
    found.findings.iter().map(|finding| finding.kind).collect()
}

/// Content that makes the rules which look into a file say yes.
const WORST: &str = "{\"scripts\":{\"postinstall\":1,\"post-install-cmd\":1}}";

fn worst_for(rule: &Rule) -> &'static str {
    match rule.kind {
        "git config" => "[core]\nsshCommand = x\n",
        "git filter" => "* filter=x",
        _ => WORST,
    }
}

/// Every path that a rule is about.
fn examples(pattern: Pattern) -> Vec<String> {
    match pattern {
        Pattern::Name(name) => vec![name.to_owned()],
        Pattern::Ending(ending) => vec![format!("some{ending}")],
        Pattern::End(path) => vec![path.join("/")],
        Pattern::Under(path) => vec![
            format!("{}/x", path.join("/")),
            format!("{}/deep/x", path.join("/")),
        ],
        Pattern::In(directory, names) => names
            .iter()
            .map(|name| format!("{directory}/{name}"))
            .collect(),
    }
}

#[test]
fn every_rule_is_met_and_held_whatever_the_case_and_the_depth() {
    for rule in RULES {
        for example in examples(rule.pattern) {
            let worst = worst_for(rule);
            for path in [
                format!("copy/{example}"),
                format!("copy/nested/repository/{example}"),
                format!("copy/{}", example.to_uppercase()),
            ] {
                assert_eq!(look(&path, worst).len(), 1, "{path}");
            }
            // What a copy is called may be what matters.
            let name = example.rsplit('/').next().unwrap();
            let directory = Path::new("/home/a").join(&example);
            let mut handoff = Handoff::new(directory.parent().unwrap(), true);
            let decision = handoff.file(Path::new(name), 0o644, worst.as_bytes());
            assert!(!decision.take, "{example}");
            // A second name of something, which nobody looks into.
            let mut handoff = Handoff::new(Path::new("/"), true);
            assert!(
                !handoff.hard_link(&Path::new("copy").join(&example)),
                "{example}"
            );
            assert!(!handoff.symlink(&Path::new("copy").join(&example), Path::new("x")));
        }
    }
}

#[test]
fn rules_are_written_as_they_are_compared() {
    for rule in RULES {
        for example in examples(rule.pattern) {
            for part in example.split('/') {
                assert_eq!(folded(part), part, "{example}");
            }
        }
        assert!(!rule.why.is_empty() && !rule.why.ends_with('.'), "{rule:?}");
    }
    let kinds: BTreeSet<_> = RULES.iter().map(|rule| rule.kind).collect();
    assert!(kinds.iter().all(|kind| kind.len() <= 16), "{kinds:?}");
}

#[test]
fn what_is_run_only_on_demand_is_not_told() {
    for (path, content) in [
        ("copy/Makefile", ""),
        ("copy/src/main.rs", ""),
        ("copy/setup.py", ""),
        ("copy/.git/hooks/pre-commit.sample", ""),
        ("copy/.git/HEAD", "ref: refs/heads/main"),
        ("copy/.git/objects/ab/cdef", ""),
        ("copy/.gitignore", "*.o"),
        (
            "copy/.git/config",
            "[core]\n\tbare = false\n\tfsmonitor = true\n[remote \"o\"]\n\turl = https://x/y\n\tfetch = +refs/*\n[branch \"main\"]\n\tremote = o\n\tmerge = refs/heads/main\n[user]\n\tname = A\n",
        ),
        (
            "copy/.gitattributes",
            "*.png binary\n# filter=x\n* text=auto\n",
        ),
        (
            "copy/package.json",
            "{\"scripts\":{\"test\":\"x\",\"build\":\"y\"}}",
        ),
        ("copy/composer.json", "{\"scripts\":{\"test\":\"x\"}}"),
        ("copy/hooks/readme", ""),
        ("copy/vscode/tasks.json", ""),
        ("copy/bashrc", ""),
        ("copy/...", ""),
    ] {
        assert_eq!(look(path, content), Vec::<&str>::new(), "{path}");
    }
}

#[test]
fn a_git_configuration_is_read_as_git_reads_it() {
    let told = |text: &str| look("copy/.git/config", text) == ["git config"];
    for text in [
        "[core]\n\tfsmonitor = ./x",
        "[CORE] FsMonitor=./x",
        "[core]sshCommand = x",
        "[core]\nhooksPath = .hooks",
        "[core]\n; nothing\neditor = vi; x",
        "\u{feff}[core]\npager = x",
        "[include]\npath = ../x",
        "[includeIf \"gitdir:/\"]\npath = x",
        "[filter \"a]b\"] smudge = x",
        "[filter.lfs]\nprocess = x",
        "[diff \"x\"]\ntextconv = x",
        "[merge \"x\"]\ndriver = x",
        "[alias]\nst = !x",
        "[credential]\nhelper = !x",
        "[gpg]\nprogram = x",
        "[remote \"o\"]\nuploadpack = x",
        "[url \"ext::x\"]\ninsteadOf = https://",
        "[protocol \"ext\"]\nallow = always",
        "[submodule \"x\"]\nupdate = !x",
        "[core\nno end",
    ] {
        assert!(told(text), "{text:?}");
    }
    assert!(!told("# [core] pager = x\n[core]\n# pager = x\n"));
    for path in [
        "copy/.git/modules/a/config",
        "copy/bare.git/config",
        "copy/.GIT/Config",
    ] {
        assert_eq!(look(path, "[core]\npager=x"), ["git config"], "{path}");
    }
}

#[test]
fn what_is_too_long_to_look_into_counts_as_the_worst() {
    let long = " ".repeat(CONTENT_BYTES_MAX + 1);
    assert_eq!(look("copy/.git/config", &long), ["git config"]);
    assert_eq!(look("copy/package.json", &long), ["install script"]);
    assert_eq!(look("copy/package.json", "not JSON"), ["install script"]);
    assert_eq!(look("copy/.git/config", &long[1..]), Vec::<&str>::new());
    let handoff = Handoff::new(Path::new("/"), false);
    assert!(handoff.needs_content(Path::new("a/.git/config")));
    assert!(!handoff.needs_content(Path::new("a/data")));
}

#[test]
fn names_that_look_like_others_are_folded_or_told() {
    for path in [
        "copy/.GIT/hooks/PRE-COMMIT",
        "copy/.g\u{200c}it/hooks/pre-commit",
        "copy/.git /hooks/pre-commit",
        "copy/.git./hooks/pre-commit.",
        "copy/git~1/hooks/pre-commit",
        "copy/.git/hooks/pre-commit::$DATA",
        "copy/.git/hoo\u{212a}s/pre-commit",
    ] {
        assert_eq!(look(path, ""), ["git hook"], "{path:?}");
    }
    for path in ["copy/a\u{202e}txt.exe", "copy/a\nb", "copy/\u{200b}"] {
        assert_eq!(look(path, ""), ["misleading name"], "{path:?}");
    }
    assert_eq!(look("copy/.en\u{feff}vrc", ""), ["environment"]);
}

#[test]
fn links_out_and_links_for_directories_are_told() {
    let mut handoff = Handoff::new(Path::new("/home/a"), true);
    for (path, target, kept) in [
        ("copy/link", "file", true),
        ("copy/deep/link", "../file", true),
        ("copy/deep/link", "../../file", false),
        ("copy/deep/link", "x/../../../y", false),
        ("copy/link", "..", false),
        ("copy/link", "/etc/passwd", false),
        ("copy", "file", true),
        ("copy", "../file", false),
        ("copy", "/etc", false),
        ("copy/.git", "other", false),
        ("copy/.git/hooks", "../own", false),
        ("copy/.github", "other", false),
        ("copy/.vscode", "other", false),
        ("copy/.config", "other", false),
        ("copy/.envrc", "other", false),
    ] {
        assert_eq!(
            handoff.symlink(Path::new(path), Path::new(target)),
            kept,
            "{path} {target}"
        );
    }
    let mut loose = Handoff::new(Path::new("/home/a"), false);
    assert!(loose.symlink(Path::new("copy/link"), Path::new("/etc")));
    let found = loose.finish();
    assert_eq!((found.findings.len(), found.held), (1, 0));
    assert!(!found.findings[0].held);
}

#[test]
fn bits_are_held_and_the_file_is_not() {
    let mut handoff = Handoff::new(Path::new("/"), true);
    let decision = handoff.file(Path::new("copy/run"), 0o4755, b"");
    assert_eq!((decision.take, decision.mode), (true, 0o4644));
    let found = handoff.finish();
    let kinds: Vec<_> = found.findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, ["setuid", "executable"]);
    let mut loose = Handoff::new(Path::new("/"), false);
    assert_eq!(loose.file(Path::new("copy/run"), 0o2755, b"").mode, 0o2755);
    assert_eq!(loose.finish().findings.len(), 2);
}

#[test]
fn any_number_of_findings_is_counted_and_few_are_kept() {
    let mut handoff = Handoff::new(Path::new("/"), true);
    for number in 0..FINDINGS_MAX + 5 {
        handoff.file(Path::new(&format!("copy/{number}/.envrc")), 0o644, b"");
    }
    let found = handoff.finish();
    assert_eq!((found.findings.len(), found.more), (FINDINGS_MAX, 5));
    assert_eq!(found.held, FINDINGS_MAX as u64 + 5);
    let deep = "a/".repeat(1 << 16);
    assert_eq!(look(&format!("{deep}.envrc"), "").len(), 1);
}

//! Files as the agent serves them.

use std::io;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use pinfold_types::ErrorCode;

use super::sandbox::{path, whole};
use super::tar::{Kind, archive, entry};
use super::{Sandbox, Setup, Stop, Verdict, ensure, ensure_eq, soon};
use crate::agent::{AgentError, WatchEvent, WriteFile};

/// `inotify(7)`: an entry was moved away, moved here, made, removed.
const MOVED_FROM: u32 = 0x40;
const MOVED_TO: u32 = 0x80;
const CREATED: u32 = 0x100;
const DELETED: u32 = 0x200;

fn refused<T>(answer: Result<T, AgentError>, code: ErrorCode, what: &str) -> Verdict {
    match answer {
        Err(error) => ensure!(
            error.code == code,
            "{what}: {} ({}) and not {code}",
            error.code,
            error.message
        ),
        Ok(_) => ensure!(false, "{what}: it was done"),
    }
    Ok(())
}

fn pattern(bytes: usize) -> Vec<u8> {
    // A multiplicative generator: every byte value, no short period.
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(bytes)
    .collect()
}

pub async fn what_is_written_is_read(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    for bytes in [0, 1, 65_536, 3_000_001] {
        let content = pattern(bytes);
        sandbox.write("file", &content).await?;
        ensure!(
            sandbox.content("file").await? == content,
            "{bytes} bytes came back otherwise"
        );
        let counted = sandbox.script("wc -c < file").await?.text();
        ensure_eq!(counted.trim(), bytes.to_string());
    }
    let file = WriteFile {
        path: path("a/b/secret"),
        mode: 0o600,
        make_parents: true,
        ..WriteFile::default()
    };
    ensure_eq!(sandbox.agent.write_file(file, whole(b"s")).await?, 1);
    let info = sandbox.agent.stat(&path("a/b/secret"), false).await?;
    ensure_eq!((info.mode, info.size), (0o600, 1));
    let file = WriteFile {
        path: path("no/such/directory"),
        ..WriteFile::default()
    };
    let answer = sandbox.agent.write_file(file, whole(b"s")).await;
    refused(answer, ErrorCode::NotFound, "a missing parent")
}

pub async fn ranges_are_read(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let content = pattern(300_000);
    sandbox.write("file", &content).await?;
    for (offset, length) in [
        (0, 1),
        (299_999, 1),
        (100_000, 150_000),
        (5, 0),
        (0, 300_000),
    ] {
        let part = sandbox
            .content_of(&path("file"), offset as u64, length as u64)
            .await?;
        let end = if length == 0 {
            300_000
        } else {
            offset + length
        };
        ensure!(
            Some(part.as_slice()) == content.get(offset..end),
            "{length} bytes from {offset}"
        );
    }
    let beyond = sandbox.content_of(&path("file"), 300_001, 10).await;
    ensure!(
        beyond.as_ref().map_or(true, Vec::is_empty),
        "there is nothing behind the end"
    );
    Ok(())
}

pub async fn a_file_is_changed_in_place(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox.write("file", b"0123456789").await?;
    let before = sandbox.script("stat -c %i file").await?.text();
    let file = WriteFile {
        path: path("file"),
        in_place: true,
        offset: 4,
        ..WriteFile::default()
    };
    ensure_eq!(sandbox.agent.write_file(file, whole(b"ab")).await?, 2);
    ensure_eq!(sandbox.content("file").await?, b"0123ab6789");
    ensure_eq!(sandbox.script("stat -c %i file").await?.text(), before);
    Ok(())
}

pub async fn a_broken_upload_changes_nothing(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox.write("file", b"before").await?;
    let broken = futures::stream::iter([
        Ok(Bytes::from_static(b"half of it")),
        Err(io::Error::other("the other half is lost")),
    ]);
    let file = WriteFile {
        path: path("file"),
        ..WriteFile::default()
    };
    let answer = sandbox.agent.write_file(file, broken).await;
    refused(answer, ErrorCode::Unavailable, "a broken source")?;
    ensure_eq!(sandbox.content("file").await?, b"before");
    super::eventually("only the file is left", || async {
        let (entries, _) = sandbox.agent.list_directory("/yard", "", 0).await?;
        Ok(entries.len() == 1)
    })
    .await
}

pub async fn files_are_looked_at(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox
        .script("echo 12345 > file; mkdir dir; ln -s file link; mkfifo fifo; chmod 4750 file")
        .await?;
    let agent = &sandbox.agent;
    let file = agent.stat(&path("file"), false).await?;
    ensure_eq!(
        (file.name.as_str(), file.kind.as_str(), file.size, file.mode),
        ("file", "file", 6, 0o4750)
    );
    ensure!(file.modified_ms > 0, "it has no time");
    ensure_eq!(agent.stat(&path("dir"), false).await?.kind, "directory");
    ensure_eq!(agent.stat(&path("fifo"), false).await?.kind, "fifo");
    let link = agent.stat(&path("link"), false).await?;
    ensure_eq!(
        (link.kind.as_str(), link.link_target.as_str()),
        ("symlink", "file")
    );
    ensure_eq!(agent.stat(&path("link"), true).await?.kind, "file");
    ensure_eq!(agent.stat("/", false).await?.kind, "directory");
    for bad in ["relative", "", "/yard/../../a\0b"] {
        refused(
            agent.stat(bad, false).await,
            ErrorCode::InvalidArgument,
            bad,
        )?;
    }
    Ok(())
}

pub async fn directories_come_in_pages(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox
        .script("mkdir d; cd d; seq 1 2500 | sed s/^/f/ | xargs touch; touch .hidden")
        .await?;
    let agent = &sandbox.agent;
    let mut after = String::new();
    let mut names = Vec::new();
    loop {
        let (entries, more) = agent.list_directory(&path("d"), &after, 0).await?;
        ensure!(entries.len() <= 1000, "a page has {}", entries.len());
        names.extend(entries.into_iter().map(|entry| entry.name));
        match names.last() {
            Some(last) if more => after.clone_from(last),
            _ => break,
        }
    }
    let mut expected: Vec<String> = (1..=2500).map(|number| format!("f{number}")).collect();
    expected.push(".hidden".to_owned());
    expected.sort();
    ensure!(names == expected, "{} names came", names.len());
    let (few, more) = agent.list_directory(&path("d"), "f2499", 2).await?;
    let few: Vec<&str> = few.iter().map(|entry| entry.name.as_str()).collect();
    ensure_eq!((few, more), (vec!["f25", "f250"], true));
    let answer = agent.list_directory(&path("d/f1"), "", 0).await;
    ensure!(answer.is_err(), "a file was listed");
    Ok(())
}

pub async fn directories_are_made(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let agent = &sandbox.agent;
    agent.make_directory(&path("a"), 0o700, false).await?;
    ensure_eq!(agent.stat(&path("a"), false).await?.mode, 0o700);
    refused(
        agent.make_directory(&path("a"), 0o755, false).await,
        ErrorCode::AlreadyExists,
        "the same again",
    )?;
    refused(
        agent.make_directory(&path("x/y/z"), 0o755, false).await,
        ErrorCode::NotFound,
        "without its parents",
    )?;
    agent.make_directory(&path("x/y/z"), 0o755, true).await?;
    agent.make_directory(&path("x/y/z"), 0o755, true).await?;
    ensure!(sandbox.exists("x/y/z").await?, "it is not there");
    Ok(())
}

pub async fn files_are_renamed(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox.write("one", b"1").await?;
    sandbox.write("two", b"2").await?;
    let agent = &sandbox.agent;
    agent.rename(&path("one"), &path("two")).await?;
    ensure!(!sandbox.exists("one").await?, "the old name is there");
    ensure_eq!(sandbox.content("two").await?, b"1");
    refused(
        agent.rename(&path("one"), &path("three")).await,
        ErrorCode::NotFound,
        "a missing file",
    )
}

pub async fn files_are_removed(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let agent = &sandbox.agent;
    sandbox
        .script("mkdir -p d/e/f; echo x > d/e/f/g; echo y > plain; chmod 0 d/e/f")
        .await?;
    agent.remove(&path("plain"), false, false).await?;
    ensure!(
        agent.remove(&path("d"), false, false).await.is_err(),
        "a full directory was removed"
    );
    ensure!(sandbox.exists("d/e").await?, "something of it was removed");
    agent.remove(&path("d"), true, false).await?;
    ensure!(!sandbox.exists("d").await?, "it is still there");
    agent.remove(&path("d"), true, true).await?;
    refused(
        agent.remove(&path("d"), true, false).await,
        ErrorCode::NotFound,
        "a missing directory",
    )?;
    ensure!(
        agent.remove("/", true, true).await.is_err(),
        "the root was removed"
    );
    Ok(())
}

pub async fn removing_does_not_follow_links(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox
        .script("mkdir keep doomed; echo x > keep/file; ln -s ../keep doomed/link; ln -s keep top")
        .await?;
    sandbox.agent.remove(&path("doomed"), true, false).await?;
    sandbox.agent.remove(&path("top"), true, false).await?;
    ensure!(!sandbox.exists("top").await?, "the link is still there");
    ensure_eq!(sandbox.content("keep/file").await?, b"x\n");
    Ok(())
}

pub async fn links_do_not_lead_out(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox
        .script("ln -s ../../../../../../../../../../yard/inside up; ln -s /yard/inside absolute")
        .await?;
    sandbox.write("inside", b"inside").await?;
    // Whatever the driver's root is, a link is read as a process inside would read it there.
    for name in ["up", "absolute"] {
        ensure_eq!(sandbox.content(name).await?, b"inside");
    }
    sandbox.script("ln -s loop loop").await?;
    ensure!(sandbox.content("loop").await.is_err(), "a loop was read");
    if !setup.driver.capabilities().own_root {
        let host = setup.facts.host_dir.join("host-secret");
        std::fs::write(&host, "secret")?;
        sandbox
            .script(&format!("ln -s '{}' out", host.display()))
            .await?;
        refused(
            sandbox.content_of(&path("out"), 0, 0).await,
            ErrorCode::NotFound,
            "a file of the host",
        )?;
    }
    Ok(())
}

pub async fn pipes_are_refused(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox.script("mkfifo fifo").await?;
    let read = soon("a refusal", sandbox.content_of(&path("fifo"), 0, 0)).await?;
    ensure!(read.is_err(), "a pipe was read");
    let file = WriteFile {
        path: path("fifo"),
        in_place: true,
        ..WriteFile::default()
    };
    let write = soon("a refusal", sandbox.agent.write_file(file, whole(b"x"))).await?;
    ensure!(write.is_err(), "a pipe was written");
    let read = sandbox.content_of("/yard", 0, 0).await;
    ensure!(read.is_err(), "a directory was read");
    Ok(())
}

pub async fn changes_are_watched(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox
        .agent
        .make_directory(&path("w"), 0o755, false)
        .await?;
    let mut events = sandbox.agent.watch(&path("w"), false);
    // The watch is there once its stream is open, which only polling does. So things are made
    // until one is seen.
    let mut seen: Vec<WatchEvent> = Vec::new();
    for attempt in 0.. {
        ensure!(attempt < 100, "no change was seen");
        sandbox.write("w/probe", b"x").await?;
        let look = tokio::time::timeout(std::time::Duration::from_millis(200), events.next());
        if let Ok(Some(event)) = look.await {
            event?;
            break;
        }
    }
    sandbox
        .script("cd w; : > first; mv first second; rm second")
        .await?;
    while !seen
        .iter()
        .any(|event| event.name == "second" && event.mask & DELETED != 0)
    {
        match soon("the next change", events.next()).await? {
            Some(event) => seen.push(event?),
            None => return Err(Stop::Failed("the watch ended".to_owned())),
        }
    }
    let find = |name: &str, bit: u32| {
        seen.iter()
            .find(|event| event.name == name && event.mask & bit != 0)
            .cloned()
            .ok_or_else(|| Stop::Failed(format!("{name} with {bit:#x} is not in {seen:?}")))
    };
    find("first", CREATED)?;
    let (from, to) = (find("first", MOVED_FROM)?, find("second", MOVED_TO)?);
    ensure!(
        from.cookie == to.cookie && from.cookie != 0,
        "{from:?} {to:?}"
    );
    let missing = sandbox.agent.watch(&path("missing"), false).next().await;
    match missing {
        Some(Err(error)) => ensure_eq!(error.code, ErrorCode::NotFound),
        other => ensure!(false, "a missing directory is watched: {other:?}"),
    }
    Ok(())
}

pub async fn archives_go_out_and_in(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let content = pattern(1_000_000);
    sandbox
        .script("mkdir -p tree/deep/er out; echo x > tree/deep/er/file; ln -s deep tree/link; chmod 750 tree/deep")
        .await?;
    sandbox.write("tree/large", &content).await?;
    let agent = &sandbox.agent;
    let packed: Vec<Bytes> = agent.pack(&path("tree")).try_collect().await?;
    let parts: Vec<io::Result<Bytes>> = packed.into_iter().map(Ok).collect();
    let count = agent
        .unpack(&path("out"), "", futures::stream::iter(parts))
        .await?;
    ensure!(count >= 5, "{count} entries were unpacked");
    // Whether the archive names the directory itself is seen by what is there.
    let base = if sandbox.exists("out/tree").await? {
        "out/tree"
    } else {
        "out"
    };
    ensure_eq!(
        sandbox.content(&format!("{base}/deep/er/file")).await?,
        b"x\n"
    );
    ensure!(
        sandbox.content(&format!("{base}/large")).await? == content,
        "a file came otherwise"
    );
    let link = agent.stat(&path(&format!("{base}/link")), false).await?;
    ensure_eq!(link.link_target, "deep");
    let directory = agent.stat(&path(&format!("{base}/deep")), false).await?;
    ensure_eq!(directory.mode, 0o750);
    Ok(())
}

async fn unpack(sandbox: &Sandbox, content: &[u8]) -> Result<u64, AgentError> {
    sandbox.agent.unpack(&path("out"), "", whole(content)).await
}

pub async fn hostile_archives_are_refused(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox.script("mkdir out; echo safe > victim").await?;
    let evil = Kind::File(b"evil");
    let archives = [
        ("a name with ..", archive(&[entry("../victim", evil)])),
        (
            "a deep name with ..",
            archive(&[entry("a/../../victim", evil)]),
        ),
        (
            "a link, and a file through it",
            archive(&[entry("up", Kind::Symlink("..")), entry("up/victim", evil)]),
        ),
        (
            "an absolute link, and a file through it",
            archive(&[
                entry("up", Kind::Symlink("/yard")),
                entry("up/victim", evil),
            ]),
        ),
        (
            "a hard link to a file outside",
            archive(&[
                entry("hard", Kind::Hardlink("../victim")),
                entry("hard", evil),
            ]),
        ),
    ];
    for (what, content) in archives {
        let answer = unpack(&sandbox, &content).await;
        ensure!(answer.is_err(), "{what} was unpacked");
        ensure_eq!(sandbox.content("victim").await?, b"safe\n");
    }
    // An absolute name is unpacked beneath the directory or not at all.
    drop(unpack(&sandbox, &archive(&[entry("/yard/victim", evil)])).await);
    ensure_eq!(sandbox.content("victim").await?, b"safe\n");
    let whole = archive(&[entry("file", Kind::File(&pattern(5000)))]);
    let cut = whole.get(..2000).unwrap_or_default();
    ensure!(
        unpack(&sandbox, cut).await.is_err(),
        "half an archive was unpacked"
    );
    ensure!(
        unpack(&sandbox, &pattern(4096)).await.is_err(),
        "noise was unpacked"
    );
    Ok(())
}

pub async fn missing_files_are_not_found(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let agent = &sandbox.agent;
    let missing = path("missing");
    refused(
        agent.stat(&missing, true).await,
        ErrorCode::NotFound,
        "stat",
    )?;
    refused(
        sandbox.content_of(&missing, 0, 0).await,
        ErrorCode::NotFound,
        "read",
    )?;
    refused(
        agent.list_directory(&missing, "", 0).await,
        ErrorCode::NotFound,
        "list",
    )?;
    let packed: Result<Vec<Bytes>, _> = agent.pack(&missing).try_collect().await;
    refused(packed, ErrorCode::NotFound, "pack")
}

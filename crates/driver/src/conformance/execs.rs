//! Starting processes, and how they end.

use std::collections::BTreeSet;

use futures::TryStreamExt as _;
use pinfold_types::ErrorCode;
use pinfold_types::exec::TerminalSize;

use super::sandbox::Command;
use super::{Sandbox, Setup, Stop, Verdict, ensure, ensure_eq, eventually, soon};

pub async fn exit_codes_are_told(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    for code in [0, 1, 7, 255] {
        let finished = sandbox.run(Command::shell(&format!("exit {code}"))).await?;
        ensure_eq!(finished.exit.code, Some(code));
        ensure_eq!(finished.exit.signal, None);
        ensure!(!finished.exit.timed_out, "nothing timed out");
    }
    Ok(())
}

pub async fn signals_that_end_are_told(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    for signal in [9, 15] {
        let finished = sandbox
            .run(Command::shell(&format!("kill -{signal} $$")))
            .await?;
        ensure_eq!(finished.exit.signal, Some(signal));
        ensure_eq!(finished.exit.code, None);
    }
    Ok(())
}

pub async fn standard_error_is_apart(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let finished = sandbox.script("echo out; echo err >&2").await?;
    ensure_eq!(finished.text(), "out\n");
    ensure_eq!(String::from_utf8_lossy(&finished.stderr), "err\n");
    Ok(())
}

pub async fn the_environment_is_exact(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let mut command = Command::new(&["/usr/bin/env"]);
    command.0.environment = vec![
        ("PATH".to_owned(), "/usr/bin".to_owned()),
        ("EMPTY".to_owned(), String::new()),
        ("WORDS".to_owned(), "two words = one value".to_owned()),
        ("ÜMLAUT".to_owned(), "ß".to_owned()),
    ];
    let finished = sandbox.run(command).await?;
    let text = finished.text();
    let seen: BTreeSet<&str> = text.lines().collect();
    let expected = BTreeSet::from([
        "PATH=/usr/bin",
        "EMPTY=",
        "WORDS=two words = one value",
        "ÜMLAUT=ß",
    ]);
    ensure_eq!(seen, expected);
    Ok(())
}

pub async fn the_working_directory_is_taken(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox
        .agent
        .make_directory("/yard/deep/er", 0o755, true)
        .await?;
    let mut command = Command::shell("echo here > found");
    "/yard/deep/er".clone_into(&mut command.0.working_directory);
    sandbox.run(command).await?;
    ensure_eq!(sandbox.content("deep/er/found").await?, b"here\n");
    Ok(())
}

pub async fn users_are_resolved(setup: &Setup) -> Verdict {
    setup.needs(setup.driver.capabilities().own_root, "users of its own")?;
    let sandbox = setup.sandbox().await?;
    let mut command = Command::shell("id -u; id -g");
    "1000:1001".clone_into(&mut command.0.user);
    if sandbox.instance.record().granted.ids == "single" {
        return Err(Stop::Skipped("this host gives a single id".to_owned()));
    }
    ensure_eq!(sandbox.run(command).await?.text(), "1000\n1001\n");
    let mut command = Command::shell("id -u; id -g");
    "root".clone_into(&mut command.0.user);
    ensure_eq!(sandbox.run(command).await?.text(), "0\n0\n");
    Ok(())
}

async fn refused(sandbox: &Sandbox, command: Command, code: ErrorCode) -> Verdict {
    let what = format!("{:?}", command.0.arguments);
    match sandbox.agent.start(command.0).await {
        Ok(pid) => ensure!(false, "{what} was started as {pid}"),
        Err(error) => {
            ensure!(
                error.code == code,
                "{what} was refused with {} ({}) and not {code}",
                error.code,
                error.message
            );
            ensure!(
                error.hint.is_some() || code == ErrorCode::InvalidArgument,
                "no hint"
            );
        }
    }
    ensure!(
        sandbox.agent.list().await?.is_empty(),
        "{what} was refused and is listed"
    );
    Ok(())
}

pub async fn a_missing_command_is_told(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    for program in ["no-such-program", "/no/such/program", "./no-such-program"] {
        refused(
            &sandbox,
            Command::new(&[program]),
            ErrorCode::CommandNotFound,
        )
        .await?;
    }
    Ok(())
}

pub async fn what_cannot_be_executed_is_told(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    sandbox.write("text", b"just text\n").await?;
    let command = Command::new(&["./text"]);
    refused(&sandbox, command, ErrorCode::CommandNotExecutable).await
}

pub async fn a_missing_directory_is_told(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let mut command = Command::new(&["true"]);
    "/yard/missing".clone_into(&mut command.0.working_directory);
    refused(&sandbox, command, ErrorCode::DirectoryNotFound).await
}

pub async fn an_unknown_user_is_told(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let mut command = Command::new(&["true"]);
    "no-such-user".clone_into(&mut command.0.user);
    refused(&sandbox, command, ErrorCode::UnknownUser).await
}

pub async fn impossible_commands_are_refused(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    for arguments in [&[][..], &[""], &["true", "a\0b"]] {
        refused(
            &sandbox,
            Command::new(arguments),
            ErrorCode::InvalidArgument,
        )
        .await?;
    }
    let mut command = Command::new(&["true"]);
    command
        .0
        .environment
        .push(("A=B".to_owned(), String::new()));
    refused(&sandbox, command, ErrorCode::InvalidArgument).await
}

pub async fn starting_twice_starts_once(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let command = Command::shell("echo x >> count");
    let exec_id = command.0.exec_id.clone();
    let (first, second) = futures::join!(
        sandbox.agent.start(command.0.clone()),
        sandbox.agent.start(command.0.clone())
    );
    let first = first?;
    ensure_eq!(second?, first);
    sandbox.finish(&exec_id).await?;
    ensure_eq!(sandbox.agent.start(command.0).await?, first);
    ensure_eq!(sandbox.content("count").await?, b"x\n");
    Ok(())
}

pub async fn a_background_child_does_not_hold_the_exit(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let exec_id = sandbox
        .start(Command::shell("sleep 1000 & echo started"))
        .await?;
    let finished = soon("the exit", sandbox.finish(&exec_id)).await??;
    ensure_eq!(finished.text(), "started\n");
    ensure_eq!(finished.exit.code, Some(0));
    Ok(())
}

pub async fn execs_are_listed_and_forgotten(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let mut command = Command::shell("read line").with_input();
    "a tag".clone_into(&mut command.0.tag);
    let exec_id = sandbox.start(command).await?;
    let list = sandbox.agent.list().await?;
    ensure_eq!(list.len(), 1);
    for exec in &list {
        ensure_eq!(exec.exec_id, exec_id);
        ensure_eq!(exec.tag, "a tag");
        ensure!(exec.running && exec.pid > 0, "{exec:?} does not run");
        ensure_eq!(exec.arguments, ["sh", "-c", "read line"]);
        ensure_eq!(exec.first_seq, 1);
    }
    match sandbox.agent.forget(&exec_id).await {
        Err(error) => ensure_eq!(error.code, ErrorCode::IllegalState),
        Ok(()) => ensure!(false, "a running exec was forgotten"),
    }
    sandbox
        .agent
        .input(&exec_id, bytes::Bytes::from_static(b"\n"), true)
        .await?;
    sandbox.finish(&exec_id).await?;
    sandbox.agent.forget(&exec_id).await?;
    ensure!(sandbox.agent.list().await?.is_empty(), "it is still listed");
    Ok(())
}

pub async fn unknown_execs_are_not_found(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let agent = &sandbox.agent;
    let id = pinfold_types::ExecId::new();
    let size = TerminalSize {
        columns: 80,
        rows: 24,
    };
    let answers = [
        agent.acknowledge(&id, 1).await,
        agent.input(&id, bytes::Bytes::new(), true).await,
        agent.resize(&id, size).await,
        agent.signal(&id, 15, false).await,
        agent.forget(&id).await,
        agent.read(&id, 1, true).try_next().await.map(drop),
        agent.read(&id, 1, false).try_next().await.map(drop),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        match answer {
            Err(error) => ensure!(
                error.code == ErrorCode::NotFound,
                "call {number} answered {}",
                error.code
            ),
            Ok(()) => ensure!(false, "call {number} found it"),
        }
    }
    Ok(())
}

pub async fn many_execs_run_at_once(setup: &Setup) -> Verdict {
    const EXECS: usize = 40;
    let sandbox = setup.sandbox().await?;
    let runs = (0..EXECS).map(|number| {
        let sandbox = &sandbox;
        async move {
            let finished = sandbox
                .run(Command::shell(&format!("seq 1 500; exit {number}")))
                .await?;
            ensure_eq!(finished.stdout, super::sandbox::numbers(500));
            ensure_eq!(finished.exit.code, i32::try_from(number).ok());
            Ok::<(), Stop>(())
        }
    });
    futures::future::try_join_all(runs).await?;
    eventually("all have ended", || async {
        Ok(sandbox.agent.list().await?.iter().all(|exec| !exec.running))
    })
    .await
}

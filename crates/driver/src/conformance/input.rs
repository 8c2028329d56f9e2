//! Standard input and terminals.

use bytes::Bytes;
use pinfold_types::ErrorCode;
use pinfold_types::exec::TerminalSize;

use super::sandbox::Command;
use super::{Setup, Verdict, ensure, ensure_eq, soon};

pub async fn input_reaches_the_process_and_ends(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let exec_id = sandbox.start(Command::new(&["cat"]).with_input()).await?;
    let agent = &sandbox.agent;
    agent
        .input(&exec_id, Bytes::from_static(b"one\n"), false)
        .await?;
    sandbox.says(&exec_id, "one\n").await?;
    agent
        .input(&exec_id, Bytes::from_static(b"two\n\xff\0"), true)
        .await?;
    let finished = sandbox.finish(&exec_id).await?;
    ensure_eq!(finished.stdout, b"one\ntwo\n\xff\0");
    ensure_eq!(finished.exit.code, Some(0));
    match agent.input(&exec_id, Bytes::from_static(b"x"), false).await {
        Err(error) => ensure_eq!(error.code, ErrorCode::IllegalState),
        Ok(()) => ensure!(false, "an ended process took input"),
    }
    Ok(())
}

pub async fn large_input_waits_for_its_reader(setup: &Setup) -> Verdict {
    const BYTES: usize = 4 << 20;
    /// Enough other calls for the pipe to be full.
    const CALLS: usize = 20;
    let sandbox = setup.sandbox().await?;
    let script = "while [ ! -e go ]; do sleep 0.02; done; wc -c";
    let exec_id = sandbox.start(Command::shell(script).with_input()).await?;
    let data = Bytes::from(vec![b'x'; BYTES]);
    let mut input = std::pin::pin!(sandbox.agent.input(&exec_id, data, true));
    for _ in 0..CALLS {
        tokio::select! {
            biased;
            answer = &mut input => {
                ensure!(false, "a process that does not read took {BYTES} bytes: {answer:?}");
            }
            // Other calls go on beside it.
            listed = sandbox.agent.list() => { listed?; }
        }
    }
    let go = sandbox.new_client();
    let file = crate::agent::WriteFile {
        path: super::sandbox::path("go"),
        ..crate::agent::WriteFile::default()
    };
    go.write_file(file, super::sandbox::whole(b"")).await?;
    soon("the input is taken", input).await??;
    let finished = sandbox.finish(&exec_id).await?;
    ensure_eq!(finished.text().trim(), BYTES.to_string());
    Ok(())
}

pub async fn input_without_standard_input_is_refused(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let exec_id = sandbox.start(Command::new(&["sleep", "1000"])).await?;
    let agent = &sandbox.agent;
    match agent.input(&exec_id, Bytes::from_static(b"x"), false).await {
        Err(error) => ensure_eq!(error.code, ErrorCode::IllegalState),
        Ok(()) => ensure!(false, "a process without standard input took some"),
    }
    let size = TerminalSize {
        columns: 80,
        rows: 24,
    };
    match agent.resize(&exec_id, size).await {
        Err(error) => ensure_eq!(error.code, ErrorCode::IllegalState),
        Ok(()) => ensure!(false, "a process without a terminal was resized"),
    }
    // Its standard input is at its end and not somebody else's.
    ensure_eq!(sandbox.script("cat; echo end").await?.text(), "end\n");
    Ok(())
}

pub async fn a_terminal_has_a_size(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let script =
        "test -t 0 && test -t 1 && test -t 2 && stty size; read x; stty size; echo err >&2";
    let command = Command::shell(script).with_input().with_terminal(80, 24);
    let exec_id = sandbox.start(command).await?;
    sandbox.says(&exec_id, "24 80\r\n").await?;
    let size = TerminalSize {
        columns: 132,
        rows: 50,
    };
    sandbox.agent.resize(&exec_id, size).await?;
    sandbox
        .agent
        .input(&exec_id, Bytes::from_static(b"\n"), false)
        .await?;
    let finished = sandbox.finish(&exec_id).await?;
    ensure!(
        finished.text().contains("50 132\r\nerr\r\n"),
        "it said {:?}",
        finished.text()
    );
    ensure!(finished.stderr.is_empty(), "a terminal has one stream");
    Ok(())
}

pub async fn a_terminal_interrupts(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let command = Command::shell("echo up; exec sleep 1000")
        .with_input()
        .with_terminal(80, 24);
    let exec_id = sandbox.start(command).await?;
    sandbox.says(&exec_id, "up").await?;
    sandbox
        .agent
        .input(&exec_id, Bytes::from_static(b"\x03"), false)
        .await?;
    ensure_eq!(sandbox.finish(&exec_id).await?.exit.signal, Some(2));
    Ok(())
}

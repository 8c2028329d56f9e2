//! Programs run to their end, or started and asked after.

use bytes::Bytes;
use pinfold_types::ErrorCode;
use pinfold_types::api::{CreateSandboxRequest, ExecRequest, SignalRequest, StopRequest};
use pinfold_types::exec::decode_output;
use pinfold_types::{ExecId, SandboxState};

use crate::server::{Server, command, plain_sandbox, shell, within};

#[tokio::test]
async fn a_program_runs_and_its_output_comes_back() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let run = |request: ExecRequest| {
        let client = server.client.clone();
        async move { within(client.exec(name, &request)).await.unwrap() }
    };
    let mut request = shell("echo out-$A; echo err >&2; exit 3");
    request.env.insert("A".to_owned(), "1".to_owned());
    let result = run(request).await;
    assert_eq!(
        (result.exit_code, &*result.stdout, &*result.stderr),
        (3, "out-1\n", "err\n")
    );
    assert!(!result.truncated && result.ended_at >= result.started_at);

    let binary = run(shell(r"printf '\377\000a'")).await;
    let decoded = decode_output(&binary.stdout, binary.stdout_encoding.as_deref());
    assert_eq!(decoded.as_deref(), Some(&b"\xff\0a"[..]));

    let long = run(shell("head -c 1200000 /dev/zero | tr '\\0' a; echo ok >&2")).await;
    assert_eq!((long.stdout.len(), long.truncated), (1 << 20, true));
    assert_eq!((long.stderr.as_str(), long.exit_code), ("ok\n", 0));

    let mut slow = shell("sleep 100 & sleep 100");
    slow.timeout_ms = Some(100);
    let slow = run(slow).await;
    assert!(slow.exit.timed_out);
    assert_eq!(slow.exit_code, 124);
    server.end().await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let mut lost = command(&["true"]);
    lost.workdir = Some("/nonexistent".to_owned());
    for (request, code) in [
        (command(&["no-such-command"]), ErrorCode::CommandNotFound),
        (command(&["/etc/passwd"]), ErrorCode::CommandNotExecutable),
        (lost, ErrorCode::DirectoryNotFound),
        (command(&[]), ErrorCode::InvalidArgument),
        (
            command(&["true", &"x".repeat(2 << 20)]),
            ErrorCode::InvalidArgument,
        ),
    ] {
        let error = within(server.client.exec(name, &request))
            .await
            .unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    let error = server
        .client
        .exec_get(name, &ExecId::new())
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
    server.end().await;
}

#[tokio::test]
async fn an_exec_takes_input_and_signals_by_its_routes() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let client = &server.client;
    let mut cat = command(&["cat"]);
    cat.stdin = true;
    let exec = client.exec_start(name, &cat).await.unwrap();
    let id = &exec.exec_id;
    let data = Bytes::from(vec![b'x'; (1 << 20) + 5]);
    client.exec_input(name, id, data, false).await.unwrap();
    let message = client.execs(name).await.unwrap().execs;
    assert_eq!(message.len(), 1);
    assert!(message[0].exit.is_none());
    client
        .exec_input(name, id, Bytes::new(), true)
        .await
        .unwrap();
    let (_sender, mut receiver) = client.attach(name, id, 0).await.unwrap();
    while let Some(event) = within(receiver.next()).await {
        event.unwrap();
    }
    let ended = client.exec_get(name, id).await.unwrap();
    assert_eq!(ended.exit.unwrap().shell_code(), 0);

    let endless = client.exec_start(name, &shell("sleep 1000")).await.unwrap();
    let kill = SignalRequest {
        signal: 15,
        tree: false,
    };
    client
        .exec_signal(name, &endless.exec_id, kill)
        .await
        .unwrap();
    let (_sender, mut receiver) = client.attach(name, &endless.exec_id, 0).await.unwrap();
    while let Some(event) = within(receiver.next()).await {
        event.unwrap();
    }
    let ended = client.exec_get(name, &endless.exec_id).await.unwrap();
    assert_eq!(ended.exit.unwrap().shell_code(), 128 + 15);
    server.end().await;
}

#[tokio::test]
async fn a_program_goes_on_when_its_caller_leaves() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let script = format!(
        "touch {}; while ! test -e {}; do sleep 0.01; done; echo done",
        file("began"),
        file("go")
    );
    let request = shell(&script);
    {
        let mut call = Box::pin(server.client.exec(name, &request));
        let began = async {
            while !std::fs::exists(file("began")).unwrap() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            result = &mut call => panic!("{result:?}"),
            () = within(began) => {}
        }
    }
    let execs = server.client.execs(name).await.unwrap().execs;
    assert_eq!(execs.len(), 1);
    std::fs::write(file("go"), "").unwrap();
    let exec_id = &execs[0].exec_id;
    let (_sender, mut receiver) = server.client.attach(name, exec_id, 0).await.unwrap();
    while let Some(event) = within(receiver.next()).await {
        event.unwrap();
    }
    let exec = server.client.exec_get(name, exec_id).await.unwrap();
    assert_eq!(exec.exit.unwrap().shell_code(), 0);
    server.end().await;
}

#[tokio::test]
async fn a_sandbox_goes_through_its_life() {
    let server = Server::with_agent().await;
    let client = &server.client;
    let mut lines = Vec::new();
    let request = CreateSandboxRequest {
        name: Some("life".parse().unwrap()),
        ..plain_sandbox()
    };
    let sandbox = client
        .create_with_progress(&request, |line| lines.push(line.to_owned()))
        .await
        .unwrap();
    assert!(!lines.is_empty());
    assert_eq!(sandbox.state, SandboxState::Running);
    let taken = client.create(&request).await.unwrap_err();
    assert_eq!(taken.code(), ErrorCode::AlreadyExists, "{taken}");
    let id = sandbox.id.as_str();
    assert_eq!(client.get("life").await.unwrap().id, sandbox.id);
    assert!(!client.metrics(id).await.unwrap().timestamp.is_empty());
    assert_eq!(client.pause(id).await.unwrap().state, SandboxState::Paused);
    assert_eq!(
        client.resume(id).await.unwrap().state,
        SandboxState::Running
    );
    let stop = StopRequest {
        grace_ms: Some(100),
    };
    assert_eq!(
        client.stop(id, stop).await.unwrap().state,
        SandboxState::Stopped
    );
    let illegal = client.pause(id).await.unwrap_err();
    assert_eq!(illegal.code(), ErrorCode::IllegalState, "{illegal}");
    assert_eq!(client.start(id).await.unwrap().state, SandboxState::Running);
    assert_eq!(client.remove(id, false).await.unwrap().persist, None);
    assert!(client.get(id).await.is_err());
    server.end().await;
}

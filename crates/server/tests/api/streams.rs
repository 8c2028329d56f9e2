//! Attaching to programs, and the events of one.

use futures::StreamExt as _;
use pinfold_client::{EventRange, FrameReceiver};
use pinfold_types::api::ExecRequest;
use pinfold_types::exec::TerminalSize;
use pinfold_types::{ErrorCode, EventKind, ExecExit, ExecId, OutputStream};

use crate::server::{Server, shell, within};

/// Bytes of the large output: more than every buffer between the program and its reader together.
const LARGE_BYTES: usize = 48 << 20;

/// Reads events until the text has been written.
async fn read_until(receiver: &mut FrameReceiver, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let event = within(receiver.next()).await.unwrap().unwrap();
        if let EventKind::Output { data, .. } = event.kind {
            seen.extend_from_slice(&data);
        }
    }
}

/// Reads to the end and returns what was written to standard output, and the exit.
async fn read_all(receiver: &mut FrameReceiver) -> (Vec<u8>, ExecExit) {
    let mut output = Vec::new();
    let mut exit = None;
    let mut last_seq = 0;
    while let Some(event) = within(receiver.next()).await {
        let event = event.unwrap();
        assert!(event.seq > last_seq, "{event:?}");
        last_seq = event.seq;
        match event.kind {
            EventKind::Output {
                stream: OutputStream::Stdout,
                data,
            } => output.extend_from_slice(&data),
            EventKind::Exit(ended) => exit = Some(ended),
            EventKind::Dropped { first_kept } => panic!("dropped up to {first_kept}"),
            EventKind::Start { .. } | EventKind::Output { .. } => {}
        }
    }
    (output, exit.unwrap())
}

#[tokio::test]
async fn input_goes_in_and_output_comes_out() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let request = ExecRequest {
        stdin: true,
        ..shell("cat; echo end")
    };
    let name = sandbox.name.as_str();
    let exec = server.client.exec_start(name, &request).await.unwrap();
    let attached = server.client.attach(name, &exec.exec_id, 0).await;
    let (mut sender, mut receiver) = attached.unwrap();
    sender.input(b"hello\n").await.unwrap();
    read_until(&mut receiver, "hello\n").await;
    let large = vec![b'y'; 3 << 20];
    let (sent, read) = tokio::join!(
        async {
            sender.input(&large).await?;
            sender.end().await
        },
        read_all(&mut receiver)
    );
    sent.unwrap();
    let (output, exit) = read;
    assert_eq!(output.len(), large.len() + 4);
    assert!(output.ends_with(b"yend\n"));
    assert_eq!(exit.shell_code(), 0);
    // Input for a program that has ended is no error of the stream.
    drop(sender.input(b"late").await);
    server.end().await;
}

#[tokio::test]
async fn a_terminal_has_the_size_that_it_is_told_and_takes_signals() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let size = |columns, rows| TerminalSize { columns, rows };
    let request = ExecRequest {
        stdin: true,
        terminal: Some(size(80, 24)),
        ..shell(
            "trap 'stty size' WINCH; trap 'exit 7' TERM; stty size; echo ready; \
                 while :; do sleep 0.01; done",
        )
    };
    let name = sandbox.name.as_str();
    let exec = server.client.exec_start(name, &request).await.unwrap();
    let attached = server.client.attach(name, &exec.exec_id, 0).await;
    let (mut sender, mut receiver) = attached.unwrap();
    read_until(&mut receiver, "24 80\r\nready").await;
    sender.resize(size(100, 30)).await.unwrap();
    read_until(&mut receiver, "30 100").await;
    sender.signal(15).await.unwrap();
    let (_, exit) = read_all(&mut receiver).await;
    assert_eq!(exit.shell_code(), 7);
    server.end().await;
}

#[tokio::test]
async fn refused_input_is_told_and_the_stream_goes_on() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let request = ExecRequest {
        stdin: true,
        ..shell("cat")
    };
    let exec = server.client.exec_start(name, &request).await.unwrap();
    let attached = server.client.attach(name, &exec.exec_id, 0).await;
    let (mut sender, mut receiver) = attached.unwrap();
    sender.signal(4711).await.unwrap();
    let refusal = loop {
        if let Err(error) = within(receiver.next()).await.unwrap() {
            break error;
        }
    };
    assert_eq!(refusal.code(), ErrorCode::InvalidArgument, "{refusal}");
    sender.input(b"still here\n").await.unwrap();
    read_until(&mut receiver, "still here").await;
    sender.end().await.unwrap();
    assert_eq!(read_all(&mut receiver).await.1.shell_code(), 0);
    server.end().await;
}

#[tokio::test]
async fn a_large_output_arrives_whole_and_can_be_read_again() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let script = format!("yes 0123456789abcde | head -c {LARGE_BYTES}");
    let request = ExecRequest {
        back_pressure: true,
        ..shell(&script)
    };
    let exec = server.client.exec_start(name, &request).await.unwrap();
    for _ in 0..2 {
        let attached = server.client.attach(name, &exec.exec_id, 0).await;
        let (_sender, mut receiver) = attached.unwrap();
        let (output, exit) = read_all(&mut receiver).await;
        assert_eq!((output.len(), exit.shell_code()), (LARGE_BYTES, 0));
        assert!(output.chunks(16).all(|line| line == b"0123456789abcde\n"));
    }
    server.end().await;
}

#[tokio::test]
async fn events_are_json_from_any_point() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let client = &server.client;
    let exec = client
        .exec_start(name, &shell("echo a; echo b >&2; exit 2"))
        .await
        .unwrap();
    let read = async |range: EventRange| {
        let stream = client.stream_events(name, &exec.exec_id, range).await;
        let events: Vec<_> = within(stream.unwrap().collect::<Vec<_>>()).await;
        events.into_iter().collect::<Result<Vec<_>, _>>().unwrap()
    };
    let all = read(EventRange::ALL).await;
    let first = all.first().unwrap();
    assert_eq!((first.seq, first.kind.as_str()), (1, "start"));
    let last = all.last().unwrap();
    assert_eq!((last.kind.as_str(), last.exit_code), ("exit", Some(2)));
    assert!(all.iter().all(|event| event.exec_id == exec.exec_id));
    assert!(all.iter().all(|event| event.sandbox_id == sandbox.id));
    let text = |stream| -> String {
        all.iter()
            .filter(|event| event.stream.as_deref() == Some(OutputStream::as_str(stream)))
            .filter_map(|event| event.data.clone())
            .collect()
    };
    assert_eq!(text(OutputStream::Stdout), "a\n");
    assert_eq!(text(OutputStream::Stderr), "b\n");
    let tail = EventRange {
        from_seq: 2,
        follow: true,
    };
    assert_eq!(read(tail).await, all[1..]);
    assert_eq!(read(EventRange::PRESENT).await, all);
    let unknown = client
        .stream_events(name, &ExecId::new(), EventRange::ALL)
        .await;
    assert_eq!(unknown.err().unwrap().code(), ErrorCode::NotFound);
    server.end().await;
}

#[tokio::test]
async fn the_end_of_the_daemon_ends_streams_and_waiting_requests_but_no_program() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let name = sandbox.name.as_str();
    let request = shell("echo began; sleep 1000");
    let exec = server.client.exec_start(name, &request).await.unwrap();
    let attached = server.client.attach(name, &exec.exec_id, 0).await;
    let (_sender, mut receiver) = attached.unwrap();
    read_until(&mut receiver, "began").await;
    let waiting = {
        let (client, name) = (server.client.clone(), name.to_owned());
        tokio::spawn(async move { client.exec(&name, &shell("sleep 1000")).await })
    };
    within(async {
        while server.client.execs(name).await.unwrap().execs.len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    server.shutdown.cancel();
    let told = within(receiver.next()).await.unwrap().unwrap_err();
    assert_eq!(told.code(), ErrorCode::Unavailable, "{told}");
    assert!(within(receiver.next()).await.is_none());
    let told = within(waiting).await.unwrap().unwrap_err();
    assert_eq!(told.code(), ErrorCode::Unavailable, "{told}");
    let engine = server.engine();
    within(server.task).await.unwrap();
    let caller = crate::server::own_caller();
    let execs = engine.exec_list(&caller, name).await.unwrap().execs;
    assert!(execs.iter().all(|exec| exec.exit.is_none()));
    engine.remove(&caller, name, false).await.unwrap();
    engine.shut_down().await;
}

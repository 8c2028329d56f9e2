//! Execs: starting, journals, input, terminals, ends.

use connectrpc::ErrorCode;
use pinfold_agent_api::v1::{
    EnvironmentVariable, Event, ResizeRequest, ResourceLimit, StartRequest, StreamName,
    TerminalSize, event::Kind,
};

use crate::world::{World, alive, command, eventually, exit, text};

fn sequences(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.sequence).collect()
}

#[tokio::test]
async fn a_command_is_journaled_from_start_to_exit() {
    let world = World::new();
    let pid = world.shell("a", "echo out; echo err >&2; exit 3").await;
    let events = world.read("a", 0, true).await;
    assert!(matches!(&events[0].kind, Some(Kind::Started(started)) if started.pid == pid));
    let count = u64::try_from(events.len()).unwrap();
    assert_eq!(sequences(&events), (1..=count).collect::<Vec<_>>());
    for (stream, expected) in [
        (StreamName::STREAM_NAME_STDOUT, "out\n"),
        (StreamName::STREAM_NAME_STDERR, "err\n"),
    ] {
        let of_stream: Vec<Event> = events
            .iter()
            .filter(|event| matches!(&event.kind, Some(Kind::Output(o)) if o.stream == stream))
            .cloned()
            .collect();
        assert_eq!(text(&of_stream), expected);
    }
    let exit = exit(&events);
    assert_eq!((exit.code, exit.signal), (Some(3), None));
    assert!(exit.r#use.memory_max_bytes > 0);
    // Any point can be read again, by several.
    assert_eq!(world.read("a", 2, true).await, events[1..]);
    assert_eq!(world.read("a", 2, false).await, events[1..]);
    assert_eq!(world.read("a", count + 5, true).await, []);
}

#[tokio::test]
async fn starting_the_same_id_again_starts_nothing() {
    let world = World::new();
    let script = "echo x >>/proc/self/cwd/count; sleep 1000";
    let first = world.shell("a", script).await;
    for _ in 0..3 {
        assert_eq!(world.shell("a", script).await, first);
    }
    assert_eq!(world.list().await.len(), 1);
    eventually("the count", || world.root().join("count").exists()).await;
    world.signal("a", libc::SIGKILL, false).await.unwrap();
    world.read("a", 1, true).await;
    assert_eq!(world.shell("a", script).await, first);
    let count = std::fs::read_to_string(world.root().join("count")).unwrap();
    assert_eq!(count, "x\n");
}

#[tokio::test]
async fn nothing_is_inherited_and_everything_asked_for_is_given() {
    let world = World::new();
    std::fs::create_dir(world.root().join("work")).unwrap();
    let variable = |name: &str, value: &str| EnvironmentVariable {
        name: name.to_owned(),
        value: value.to_owned(),
        ..EnvironmentVariable::default()
    };
    let request = StartRequest {
        environment: vec![variable("A", "b=c"), variable("PATH", "/bin:/usr/bin")],
        working_directory: "/work".to_owned(),
        limits: vec![ResourceLimit {
            name: "core".to_owned(),
            soft: 5,
            hard: 6,
            ..ResourceLimit::default()
        }],
        ..command(
            "a",
            &[
                "sh",
                "-c",
                "env; pwd; ulimit -Hc; cat; ls /proc/self/fd; cat /proc/self/oom_score_adj",
            ],
        )
    };
    world.start(request).await.unwrap();
    let text = text(&world.read("a", 1, true).await);
    let work = world.root().join("work").display().to_string();
    for expected in ["A=b=c\n", &work] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert!(text.ends_with("0\n1\n2\n3\n500\n"), "{text}");
    for foreign in ["HOME", "PINFOLD"] {
        assert!(!text.contains(foreign), "{foreign} in {text}");
    }
}

#[tokio::test]
async fn a_command_that_cannot_start_says_why() {
    let world = World::new();
    std::fs::write(world.root().join("file"), "").unwrap();
    let root = world.root();
    let file = root.join("file").display().to_string();
    let directory = root.display().to_string();
    let long = "x".repeat(200 << 10);
    let failed = async |request: StartRequest| {
        let error = world.start(request).await.unwrap_err();
        error.message.clone().unwrap_or_default()
    };
    for (arguments, code) in [
        (&["no-such-command"][..], "command_not_found"),
        (&["/no/such/command"], "command_not_found"),
        (&[&file], "command_not_executable"),
        (&[&directory], "command_not_executable"),
        (&["true", &long], "invalid_argument"),
        (&[""], "invalid_argument"),
        (&[], "invalid_argument"),
    ] {
        let message = failed(command("a", arguments)).await;
        assert!(message.starts_with(&format!("code={code}; ")), "{message}");
    }
    let there = |directory: &str| StartRequest {
        working_directory: directory.to_owned(),
        ..command("a", &["true"])
    };
    for directory in ["/nowhere", "/file"] {
        let message = failed(there(directory)).await;
        assert!(
            message.starts_with("code=directory_not_found; "),
            "{message}"
        );
    }
    let user = StartRequest {
        user: "no-such-user".to_owned(),
        ..command("a", &["true"])
    };
    let message = failed(user).await;
    assert!(message.starts_with("code=unknown_user; "), "{message}");
    assert!(message.contains("no-such-user"), "{message}");
    let limit = StartRequest {
        limits: vec![ResourceLimit {
            name: "nothing".to_owned(),
            ..ResourceLimit::default()
        }],
        ..command("a", &["true"])
    };
    assert!(failed(limit).await.starts_with("code=invalid_argument; "));
    assert_eq!(world.list().await, []);
}

#[tokio::test]
async fn a_full_journal_blocks_the_process_and_loses_nothing() {
    const BYTES: usize = 12 << 20;
    let world = World::new();
    let script = format!("head -c {BYTES} /dev/zero; echo done >&2");
    world.shell("a", &script).await;
    let full = async || {
        let before = world.list().await[0].last_sequence;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        before > 1 && world.list().await[0].last_sequence == before
    };
    while !full().await {}
    let events = world.read("a", 1, false).await;
    let kept: usize = text(&events).len();
    assert!(kept <= 4 << 20 && kept > 3 << 20, "{kept}");
    let mut got = 0;
    let mut next = 1;
    let mut stream = world.events("a", 1, true).await;
    while let Some(event) = stream.message().await.unwrap() {
        let event = event.to_owned_message();
        assert_eq!(event.sequence, next);
        next += 1;
        if let Some(Kind::Output(output)) = &event.kind {
            got += output.data.len();
        }
        world.acknowledge("a", event.sequence).await;
    }
    assert_eq!(got, BYTES + "done\n".len());
    let dropped = world.read("a", 1, true).await;
    assert!(matches!(&dropped[0].kind, Some(Kind::Dropped(d)) if d.first_kept == next));
    let info = &world.list().await[0];
    assert_eq!(
        (info.first_sequence, info.last_sequence, info.running),
        (next, next - 1, false)
    );
}

#[tokio::test]
async fn input_reaches_the_process_and_ends() {
    let world = World::new();
    let request = StartRequest {
        standard_input: true,
        ..command("a", &["sh", "-c", "wc -c"])
    };
    world.start(request).await.unwrap();
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..3 {
        world.input("a", &chunk, false).await.unwrap();
    }
    world.input("a", b"tail", true).await.unwrap();
    let events = world.read("a", 1, true).await;
    assert_eq!(text(&events).trim(), ((3 << 20) + 4).to_string());
    let error = world.input("a", b"x", false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
}

#[tokio::test]
async fn input_waits_for_the_process_and_fails_when_it_closes() {
    let world = World::new();
    let with_input = |id: &str, script: &str| StartRequest {
        standard_input: true,
        ..command(id, &["sh", "-c", script])
    };
    world
        .start(with_input("closed", "exec 0<&-; echo ready; sleep 1000"))
        .await
        .unwrap();
    world.until("closed", |text| text.contains("ready")).await;
    let error = world.input("closed", b"x", false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition, "{error}");
    world.start(with_input("slow", "sleep 1000")).await.unwrap();
    let chunk = vec![b'x'; 1 << 20];
    let waiting = world.input("slow", &chunk, false);
    let killing = async {
        // Others are served meanwhile.
        world.list().await;
        world.signal("slow", libc::SIGKILL, true).await.unwrap();
    };
    let (waited, ()) = tokio::join!(waiting, killing);
    assert_eq!(waited.unwrap_err().code, ErrorCode::FailedPrecondition);
    world.shell("none", "sleep 1000").await;
    let error = world.input("none", b"x", false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let error = world.input("unknown", b"x", false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_background_child_delays_the_exit_shortly_and_lives_on() {
    let world = World::new();
    let script = "(while :; do echo tick; sleep 0.01; done) & echo $!; exit 7";
    let (text, exit) = world.run("a", script).await;
    assert_eq!(exit.code, Some(7));
    let child: i32 = text.lines().find_map(|line| line.parse().ok()).unwrap();
    assert!(alive(child));
    // It goes on although nobody reads what it writes.
    let list = world.list().await;
    assert!(!list[0].running);
    assert_eq!(world.read("a", list[0].last_sequence + 1, true).await, []);
    assert!(alive(child));
    world.signal("a", libc::SIGKILL, true).await.unwrap();
    eventually("the child's end", || !alive(child)).await;
}

#[tokio::test]
async fn the_exit_comes_after_the_last_byte() {
    let world = World::new();
    let (text, exit) = world
        .run("a", "head -c 300000 /dev/zero | tr '\\0' x; exec seq 1000")
        .await;
    assert_eq!(exit.code, Some(0));
    assert!(text.ends_with("999\n1000\n"));
    assert_eq!(text.len(), 300_000 + (9 + 90 * 2 + 900 * 3 + 4 + 1000));
}

#[tokio::test]
async fn a_signal_reaches_the_group_and_is_reported() {
    let world = World::new();
    world.shell("a", "sleep 1000 & sleep 1000").await;
    world.signal("a", libc::SIGTERM, false).await.unwrap();
    let events = world.read("a", 1, true).await;
    assert_eq!(exit(&events).signal, Some(libc::SIGTERM));
    for signal in [0, -1, 65] {
        let error = world.signal("a", signal, false).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }
    let error = world.signal("a", libc::SIGTERM, false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
}

fn on_terminal(id: &str, arguments: &[&str]) -> StartRequest {
    StartRequest {
        terminal: TerminalSize {
            columns: 80,
            rows: 24,
            ..TerminalSize::default()
        }
        .into(),
        ..command(id, arguments)
    }
}

#[tokio::test]
async fn a_terminal_has_a_size_and_keys() {
    let world = World::new();
    let script = "trap 'stty size' WINCH; stty size; tty >/dev/null && echo yes; \
                  while read line; do echo \"<$line>\"; done; echo end";
    world
        .start(on_terminal("a", &["bash", "-c", script]))
        .await
        .unwrap();
    world
        .until("a", |text| text.contains("24 80") && text.contains("yes"))
        .await;
    let resize = ResizeRequest {
        exec_id: "a".to_owned(),
        size: TerminalSize {
            columns: 100,
            rows: 30,
            ..TerminalSize::default()
        }
        .into(),
        ..ResizeRequest::default()
    };
    world.process.resize(resize.clone()).await.unwrap();
    world.input("a", b"hello\n", false).await.unwrap();
    world
        .until("a", |text| {
            text.contains("30 100") && text.contains("<hello>")
        })
        .await;
    world.input("a", b"", true).await.unwrap();
    let events = world.read("a", 1, true).await;
    assert!(text(&events).ends_with("end\r\n"), "{:?}", text(&events));
    assert_eq!(exit(&events).code, Some(0));
    let error = world.process.resize(resize).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
}

#[tokio::test]
async fn a_terminals_end_of_input_ends_a_begun_line_too() {
    let world = World::new();
    world
        .start(on_terminal(
            "a",
            &["sh", "-c", "stty -echo; echo ready; cat; echo end"],
        ))
        .await
        .unwrap();
    world.until("a", |text| text.contains("ready")).await;
    world.input("a", b"begun", true).await.unwrap();
    let text = text(&world.read("a", 1, true).await);
    assert!(text.ends_with("begunend\r\n"), "{text:?}");
}

/// Whether a shell waits for a `sleep`.
fn sleeps(shell: i32) -> bool {
    let children = format!("/proc/{shell}/task/{shell}/children");
    std::fs::read_to_string(children).is_ok_and(|children| {
        children.split_whitespace().any(|child| {
            std::fs::read_to_string(format!("/proc/{child}/comm"))
                .is_ok_and(|name| name == "sleep\n")
        })
    })
}

#[tokio::test]
async fn an_interrupt_goes_to_the_foreground_of_a_terminal() {
    let world = World::new();
    let script = "trap 'echo caught' INT; echo ready; sleep 1000; echo after; sleep 1000; echo end";
    world
        .start(on_terminal("a", &["sh", "-c", script]))
        .await
        .unwrap();
    world.until("a", |text| text.contains("ready")).await;
    let shell = world.list().await[0].pid;
    eventually("the first sleep", || sleeps(shell)).await;
    // From the keyboard: Ctrl-C.
    world.input("a", &[3], false).await.unwrap();
    world.until("a", |text| text.contains("after")).await;
    eventually("the second sleep", || sleeps(shell)).await;
    world.signal("a", libc::SIGINT, false).await.unwrap();
    let text = text(&world.read("a", 1, true).await);
    assert_eq!(text.matches("caught").count(), 2, "{text:?}");
    assert!(text.ends_with("end\r\n"), "{text:?}");
}

#[tokio::test]
async fn the_ends_of_many_are_forgotten_in_the_end() {
    let world = World::new();
    for number in 0..80 {
        let id = format!("a{number}");
        world.shell(&id, "exit 0").await;
        world.read(&id, 1, true).await;
        world.acknowledge(&id, u64::MAX).await;
    }
    assert_eq!(world.list().await.len(), 64);
    let forget = pinfold_agent_api::v1::ForgetRequest {
        exec_id: "a79".to_owned(),
        ..pinfold_agent_api::v1::ForgetRequest::default()
    };
    world.process.forget(forget.clone()).await.unwrap();
    assert_eq!(
        world.process.forget(forget).await.unwrap_err().code,
        ErrorCode::NotFound
    );
    assert_eq!(world.list().await.len(), 63);
}

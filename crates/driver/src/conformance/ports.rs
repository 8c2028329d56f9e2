//! Metrics and ports.

use pinfold_types::{ErrorCode, ExecId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::sandbox::Command;
use super::{Sandbox, Setup, Stop, Verdict, ensure, ensure_eq, soon};
use crate::contract::{DriverErrorKind, GuestPort, GuestStream};

/// Listens on a free port of the loopback, says which, and echoes one connection in upper case.
const LISTENERS: [(&str, &str); 2] = [
    (
        "python3",
        "import socket
s = socket.create_server(('127.0.0.1', 0))
print('port', s.getsockname()[1], flush=True)
while True:
    c = s.accept()[0]
    while True:
        d = c.recv(65536)
        if not d: break
        c.sendall(d.upper())
    c.close()
",
    ),
    (
        "perl",
        "use IO::Socket::INET; $| = 1;
my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 5) or die;
print 'port ', $s->sockport, \"\\n\";
while (my $c = $s->accept) { while (sysread($c, my $d, 65536)) { syswrite($c, uc $d) } close $c }
",
    ),
];

async fn listener(sandbox: &Sandbox) -> Verdict<(ExecId, u16)> {
    for (program, text) in LISTENERS {
        let flag = if program == "perl" { "-e" } else { "-c" };
        let command = Command::new(&[program, flag, text]);
        let exec_id = command.0.exec_id.clone();
        match sandbox.agent.start(command.0).await {
            Err(error) if error.code == ErrorCode::CommandNotFound => continue,
            answer => answer?,
        };
        let said = sandbox.says(&exec_id, "\n").await?;
        let port = said
            .trim()
            .strip_prefix("port ")
            .and_then(|port| port.parse().ok())
            .ok_or_else(|| Stop::Failed(format!("the listener said {said:?}")))?;
        return Ok((exec_id, port));
    }
    Err(Stop::Skipped(
        "the image has neither python3 nor perl to listen with".to_owned(),
    ))
}

async fn echoes(mut stream: GuestStream) -> Verdict {
    let mut text = "to be read in upper case\n".repeat(4000).into_bytes();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut echo = vec![0; text.len()];
    let (written, read) = soon("the echo", async {
        futures::join!(
            async {
                writer.write_all(&text).await?;
                writer.flush().await
            },
            reader.read_exact(&mut echo)
        )
    })
    .await?;
    written?;
    read?;
    text.make_ascii_uppercase();
    ensure!(echo == text, "the echo differs");
    stream.shutdown().await?;
    let mut rest = Vec::new();
    soon("the end", stream.read_to_end(&mut rest)).await??;
    ensure!(rest.is_empty(), "{} bytes too many", rest.len());
    Ok(())
}

pub async fn metrics_are_sane(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let metrics = sandbox.agent.metrics().await?;
    ensure!(metrics.uptime_seconds < 3600, "{metrics:?}");
    ensure!(!metrics.uptime.is_empty(), "{metrics:?}");
    ensure!(
        (0.0..=100.5).contains(&metrics.memory_percent),
        "{metrics:?}"
    );
    ensure!((0.0..=100.0).contains(&metrics.disk_percent), "{metrics:?}");
    ensure!(metrics.disk_free_mb > 0, "{metrics:?}");
    ensure!(
        metrics.timestamp.starts_with("20") && metrics.timestamp.contains('T'),
        "{metrics:?}"
    );
    Ok(())
}

pub async fn a_listening_port_is_dialled(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    let (_, port) = listener(&sandbox).await?;
    for _ in 0..3 {
        echoes(sandbox.agent.dial(port).await?).await?;
    }
    Ok(())
}

pub async fn a_closed_port_is_refused(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    // A port that was free a moment ago: its listener has ended.
    let (exec_id, port) = listener(&sandbox).await?;
    sandbox.agent.signal(&exec_id, 9, true).await?;
    sandbox.finish(&exec_id).await?;
    match sandbox.agent.dial(port).await {
        Err(error) => {
            ensure_eq!(error.code, ErrorCode::Unavailable);
            ensure!(error.hint.is_some(), "no hint");
        }
        Ok(_) => ensure!(false, "a closed port was dialled"),
    }
    match sandbox.agent.dial(0).await {
        Err(error) => ensure!(error.code != ErrorCode::AgentSilent, "{error:?}"),
        Ok(_) => ensure!(false, "port 0 was dialled"),
    }
    Ok(())
}

pub async fn the_host_reaches_a_port(setup: &Setup) -> Verdict {
    let sandbox = setup.sandbox().await?;
    if !setup.driver.capabilities().guest_tcp {
        match sandbox.instance.connect(GuestPort::Tcp(80)).await {
            Err(error) => ensure_eq!(error.kind, DriverErrorKind::Unsupported),
            Ok(_) => ensure!(false, "a port was reached without the capability"),
        }
        return setup.needs(false, "connections to ports");
    }
    let (exec_id, port) = listener(&sandbox).await?;
    echoes(sandbox.instance.connect(GuestPort::Tcp(port)).await?).await?;
    sandbox.agent.signal(&exec_id, 9, true).await?;
    sandbox.finish(&exec_id).await?;
    match sandbox.instance.connect(GuestPort::Tcp(port)).await {
        Err(error) => ensure_eq!(error.kind, DriverErrorKind::ConnectionRefused),
        Ok(_) => ensure!(false, "a closed port was reached"),
    }
    Ok(())
}

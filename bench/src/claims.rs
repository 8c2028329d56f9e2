//! Claims against a full pool, one after the other and all at once.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::yard::{Yard, until};
use crate::{Claims, say};

/// One answered claim.
#[derive(Debug, Clone, Copy)]
struct Answered {
    took: Duration,
    warm: bool,
}

/// Runs the comparison and tells its figures.
pub(crate) fn run(claims: &Claims) -> Result<()> {
    let yard = Yard::new(&claims.product, claims.as_user.as_deref())?;
    yard.run(&["template", "create", "t"])?;
    let count = claims.count;
    let (all, few) = (count.to_string(), claims.few.to_string());
    yard.run(&["pool", "create", "p", "--template", "t", "--size", &all])?;
    filled(&yard, count)?;
    let socket = yard.socket();
    let mut pace = Vec::new();
    for _ in 0..count {
        pace.push(claim(&socket)?);
    }
    tell("one after the other, pool of", count, &pace);
    yard.run(&["rm", "--all"])?;
    filled(&yard, count)?;
    let burst = at_once(&socket, count)?;
    tell("all at once, pool of", count, &burst);
    yard.run(&["rm", "--all"])?;
    yard.run(&["pool", "scale", "p", "--size", &few])?;
    filled(&yard, claims.few)?;
    let beyond = at_once(&socket, count)?;
    tell("all at once, pool of", claims.few, &beyond);
    yard.run(&["pool", "rm", "p"])?;
    yard.run(&["rm", "--all"])?;
    yard.end()?;
    if burst.iter().any(|answered| !answered.warm) {
        bail!("a claim against a pool of as many was not served warm");
    }
    Ok(())
}

/// Waits until the pool holds as many as it should.
fn filled(yard: &Yard, count: usize) -> Result<()> {
    let full = until(|| {
        let pools: Value = serde_json::from_str(&yard.run(&["--json", "pool", "list"])?)?;
        let pool = &pools[0];
        Ok(pool["metrics"]["depth"] == count && pool["starting"] == 0)
    })?;
    if !full {
        bail!("the pool does not fill");
    }
    Ok(())
}

fn at_once(socket: &Path, count: usize) -> Result<Vec<Answered>> {
    let start = Barrier::new(count);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    claim(socket)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a claim panicked"))?
            })
            .collect()
    })
}

/// Claims one sandbox as any program would, over a connection of its own.
fn claim(socket: &Path) -> Result<Answered> {
    let began = Instant::now();
    let mut stream = UnixStream::connect(socket)?;
    let body = "{\"template\":\"t\"}";
    let length = body.len();
    write!(
        stream,
        "POST /v1/claims HTTP/1.1\r\nhost: pinfold\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let took = began.elapsed();
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    if !head.starts_with("HTTP/1.1 201") {
        bail!("a claim failed: {answer}");
    }
    let claim: Value = serde_json::from_str(body)?;
    Ok(Answered {
        took,
        warm: claim["warm"] == true,
    })
}

fn tell(what: &str, size: usize, answered: &[Answered]) {
    let mut times: Vec<Duration> = answered.iter().map(|one| one.took).collect();
    times.sort_unstable();
    let at = |share: usize| {
        let index = (times.len() * share / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default()
    };
    let warm = answered.iter().filter(|one| one.warm).count();
    say(&format!(
        "{} claims {what} {size}: {warm} warm, {} cold; median {:.2?}, 95 % {:.2?}, last {:.2?}",
        answered.len(),
        answered.len() - warm,
        at(50),
        at(95),
        at(100),
    ));
}

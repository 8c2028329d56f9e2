//! The engine against a driver and an agent in memory.

mod changes;
mod deadlines;
mod execs;
mod lifecycle;
mod model;
mod once;
mod pool_model;
mod pools;
mod quotas;
mod recovery;
mod stub;

use std::path::Path;
use std::sync::Arc;

use pinfold_types::api::{CreateSandboxRequest, Sandbox};
use pinfold_types::{ExecEvent, ExecSpec, Role};

use self::stub::{StubDriver, World};
use crate::clock::Clock;
use crate::core::Seams;
use crate::{Caller, Engine, EngineConfig, EngineError, EventReader};

pub(crate) static USER: Caller = Caller::of_host(1000, 1000, Role::User);

pub(crate) static OTHER: Caller = Caller::of_host(1001, 1001, Role::User);

pub(crate) static ADMIN: Caller = Caller::of_host(0, 0, Role::Admin);

/// Opens an engine whose world is empty.
pub(crate) async fn open_empty(dir: &Path) -> Engine {
    open(dir, &Arc::default()).await
}

async fn open(dir: &Path, world: &Arc<World>) -> Engine {
    open_with(EngineConfig::new(dir), world).await
}

async fn open_with(config: EngineConfig, world: &Arc<World>) -> Engine {
    let seams = Seams {
        connect: world.connect(),
        clock: Clock::of_runtime(),
    };
    let driver = Arc::new(StubDriver(Arc::clone(world)));
    Engine::open_with(config, driver, seams).await.unwrap()
}

fn named(name: &str) -> CreateSandboxRequest {
    CreateSandboxRequest {
        name: Some(name.parse().unwrap()),
        ..CreateSandboxRequest::default()
    }
}

async fn create(engine: &Engine, name: &str) -> Sandbox {
    engine.create(&USER, named(name), None).await.unwrap()
}

fn command(words: &[&str]) -> ExecSpec {
    ExecSpec {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecSpec::default()
    }
}

async fn read_all(mut reader: EventReader) -> Result<Vec<ExecEvent>, EngineError> {
    let mut events = Vec::new();
    while let Some(event) = reader.next().await {
        events.push(event?);
    }
    Ok(events)
}

/// Waits for a condition that another task makes true; the runtime's clock may be a turned one, so
/// this counts looks and not time.
async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("the condition did not come true");
}

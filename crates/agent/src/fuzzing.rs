//! An agent for the fuzz targets: it answers in this process, starts no program and dials no port.
//!
//! No product has it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use connectrpc::{ConnectRpcBody, ConnectRpcService};
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use pinfold_linux::launcher::plan::Boot;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::files::Files;
use crate::metrics::Usage;
use crate::process::Table;
use crate::root::Root;
use crate::worker::Workers;
use crate::{Agent, connect, dial, serve};

/// Limits on open files that execs would get, if there were any.
const OPEN_FILES: (u64, u64) = (1024, 1024);

/// Returns the files beneath a directory, as an agent with that root has them.
///
/// # Errors
///
/// Fails when there is no such directory.
pub fn files(root: &Path) -> io::Result<Files> {
    Ok(Files::new(Arc::new(Root::open(root)?)))
}

/// An agent whose root is a directory of the host's.
#[derive(Clone)]
pub struct Served {
    agent: Arc<Agent>,
    calls: TowerToHyperService<ConnectRpcService>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Served").field(&self.agent).finish()
    }
}

impl Served {
    /// Makes the agent.
    ///
    /// # Errors
    ///
    /// Fails when there is no such directory.
    pub fn beneath(root: &Path) -> io::Result<Self> {
        let root = Arc::new(Root::open(root)?);
        let usage = Arc::new(Usage::new(&Boot::default(), Vec::new(), Arc::clone(&root)));
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let inherited = (null.into(), OPEN_FILES);
        let table = Table::new(Arc::clone(&root), Arc::clone(&usage), true, inherited);
        let agent = Arc::new(Agent {
            table: table.closed(),
            files: Files::new(root),
            workers: Workers::default(),
            usage,
            dials: dial::Dials::closed(),
        });
        let calls = TowerToHyperService::new(connect::service(&agent));
        Ok(Self { agent, calls })
    }

    /// Serves a connection until it ends, as the agent does on its inherited socket.
    pub async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        serve::serve_stream(Arc::clone(&self.agent), self.calls.clone(), stream).await;
    }

    /// Waits until no stream of a file goes on in the background.
    pub async fn idle(&self) {
        self.agent.workers.idle().await;
    }

    /// Answers one call of the services.
    pub async fn call(&self, request: Request<Full<Bytes>>) -> Response<ConnectRpcBody> {
        match self.calls.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

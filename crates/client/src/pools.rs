//! Templates, pools and claims.

use std::time::Duration;

use http::Method;
use pinfold_types::SandboxName;
use pinfold_types::api::{
    Claim, ClaimRequest, CreatePoolRequest, Pool, PoolList, ScalePoolRequest, Template,
    TemplateList, TemplateRequest,
};

use crate::client::Client;
use crate::error::ClientError;
use crate::query::Target;
use crate::transport::Call;

type Result<T, E = ClientError> = std::result::Result<T, E>;

/// Longest time for a claim, which may have to start a sandbox, and for a pool to drain.
const SLOW_MAX: Duration = Duration::from_mins(3);

fn template(name: &SandboxName) -> Target {
    Target::new(&format!("/templates/{name}"))
}

fn pool(name: &SandboxName) -> Target {
    Target::new(&format!("/pools/{name}"))
}

impl Client {
    /// Makes a template, or a new version of it.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn put_template(
        &self,
        name: &SandboxName,
        request: &TemplateRequest,
    ) -> Result<Template> {
        let target = template(name);
        let call = Call::new(Method::PUT, &target).json(request)?;
        self.transport.fetch(call).await
    }

    /// Returns a template.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn template(&self, name: &SandboxName) -> Result<Template> {
        self.get_json(&template(name)).await
    }

    /// Lists the templates that the caller may use.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn templates(&self) -> Result<TemplateList> {
        self.get_json(&Target::new("/templates")).await
    }

    /// Removes a template.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn remove_template(&self, name: &SandboxName) -> Result<()> {
        let target = template(name);
        let call = Call::new(Method::DELETE, &target);
        self.transport.send(call).await.map(drop)
    }

    /// Makes a pool and begins to fill it.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn create_pool(&self, request: &CreatePoolRequest) -> Result<Pool> {
        let target = Target::new("/pools");
        let call = Call::new(Method::POST, &target).json(request)?;
        self.transport.fetch(call).await
    }

    /// Lists the pools that the caller may claim from.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn pools(&self) -> Result<PoolList> {
        self.get_json(&Target::new("/pools")).await
    }

    /// Returns a pool.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn pool(&self, name: &SandboxName) -> Result<Pool> {
        self.get_json(&pool(name)).await
    }

    /// Changes the size of a pool.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn scale_pool(&self, name: &SandboxName, size: ScalePoolRequest) -> Result<Pool> {
        let target = pool(name);
        let call = Call::new(Method::PATCH, &target).json(&size)?;
        self.transport.fetch(call).await
    }

    /// Removes a pool with its warm sandboxes.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn remove_pool(&self, name: &SandboxName) -> Result<()> {
        let target = pool(name);
        let call = Call::new(Method::DELETE, &target).within(SLOW_MAX);
        self.transport.send(call).await.map(drop)
    }

    /// Takes a warm sandbox, or has one started.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn claim(&self, request: &ClaimRequest) -> Result<Claim> {
        let target = Target::new("/claims");
        let call = Call::new(Method::POST, &target).json(request)?;
        self.transport.fetch(call.within(SLOW_MAX)).await
    }
}

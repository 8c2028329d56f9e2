//! API keys.

use http::Method;
use pinfold_types::KeyId;
use pinfold_types::api::keys::{CreateKeyRequest, CreatedKey, KeyList, RevokedKeys};

use crate::client::Client;
use crate::error::ClientError;
use crate::query::Target;
use crate::transport::Call;

impl Client {
    /// Makes an API key; its text is in the answer and never shown again.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn key_create(&self, request: &CreateKeyRequest) -> Result<CreatedKey, ClientError> {
        let target = Target::new("/keys");
        let call = Call::new(Method::POST, &target).json(request)?;
        self.transport.fetch(call).await
    }

    /// Lists the keys that the caller may see.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn key_list(&self) -> Result<KeyList, ClientError> {
        let target = Target::new("/keys");
        let call = Call::new(Method::GET, &target);
        self.transport.fetch(call).await
    }

    /// Revokes a key and those that were made with it.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn key_revoke(&self, id: &KeyId) -> Result<RevokedKeys, ClientError> {
        let target = Target::new(&format!("/keys/{id}"));
        self.transport
            .fetch(Call::new(Method::DELETE, &target))
            .await
    }
}

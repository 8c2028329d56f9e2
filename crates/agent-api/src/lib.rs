//! The guest agent's services as protobuf, and their generated stubs.
//!
//! `proto/agent.proto` is the contract; `cargo xtask codegen` writes `src/generated` from it, and
//! `cargo xtask test` fails when the two differ. Nothing here is written by hand but this page. It
//! is a crate of its own because it is the boundary between the agent and everything on the host.

include!("generated/mod.rs");

/// Version 1 of the agent's own dialect.
pub use pinfold::agent::v1;

#[cfg(test)]
mod tests {
    use super::v1;
    use buffa::Message as _;

    #[test]
    fn a_request_survives_the_wire() {
        let request = v1::StartRequest {
            exec_id: "x0000000000000000000".to_owned(),
            arguments: vec!["echo".to_owned(), "ü".to_owned()],
            timeout_ms: 1500,
            ..v1::StartRequest::default()
        };
        let bytes = request.encode_to_vec();
        assert_eq!(
            v1::StartRequest::decode_from_slice(&bytes).unwrap(),
            request
        );
    }

    #[test]
    fn a_truncated_message_is_an_error() {
        let request = v1::InputRequest {
            data: vec![7; 100],
            ..v1::InputRequest::default()
        }
        .encode_to_vec();
        assert!(v1::InputRequest::decode_from_slice(&request[..50]).is_err());
    }
}

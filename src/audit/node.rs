//! What a node says of itself when it starts.

use serde_json::{Value, json};

use super::{Attribution, Audit, Change};
use crate::db;

/// A node's start, in the chain of the tenant `default`.
#[derive(Clone, Debug)]
pub struct NodeStart {
    /// Which node: its name or host.
    pub node: String,
    /// Of Keystead.
    pub version: String,
    /// SHA-256 of the effective configuration without its secrets, in hexadecimal.
    pub config_digest: String,
    /// Which claims of which issuers give which roles.
    pub roles: Value,
}

impl Audit {
    pub async fn record_node_start(&self, at: Attribution, start: NodeStart) -> db::Result<()> {
        self.change(at, async move |change: &mut Change| {
            change.record(
                "node.start",
                ("node", &start.node),
                None,
                Some(json!({
                    "version": start.version,
                    "config_digest": start.config_digest,
                    "roles": start.roles,
                })),
            );
            db::Result::Ok(())
        })
        .await
    }
}

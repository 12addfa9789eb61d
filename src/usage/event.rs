//! Events as JSON: in lists, in exports, and in the file that a SIEM reads.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::store::batch::Detail;
use super::store::events::StoredEvent;
use crate::db;
use crate::telemetry::escape;
use crate::time::Timestamp;

/// A use of a key, or a refused attempt at one.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "UsageEvent")]
pub struct UsageEventBody {
    #[schema(example = "evt_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub id: String,
    pub at: Timestamp,
    #[schema(example = "key_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub key_id: String,
    #[schema(example = "sec_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub secret_id: String,
    /// Whether the secret had been replaced by a newer one.
    pub superseded: bool,
    #[schema(example = "con_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub consumer_id: String,
    /// The slug; empty if there was no service of the name that was asked for.
    #[schema(example = "billing")]
    pub service: String,
    #[schema(example = "live")]
    pub environment: String,
    #[schema(example = "verify")]
    pub operation: String,
    /// `valid`, or the code of the refusal.
    #[schema(example = "valid")]
    pub outcome: String,
    pub required_scopes: Vec<String>,
    pub any_scopes: Vec<String>,
    pub cost: u64,
    #[schema(required = true, example = "192.0.2.1")]
    pub ip: Option<String>,
    #[schema(required = true, example = "GET")]
    pub method: Option<String>,
    /// Without its query, and with `[key]` in the place of what has the shape of a key; so are `user_agent`
    /// and `context`.
    #[schema(required = true, example = "/invoices/7")]
    pub path: Option<String>,
    #[schema(required = true)]
    pub user_agent: Option<String>,
    pub context: BTreeMap<String, String>,
    #[schema(required = true)]
    pub token_id: Option<String>,
    #[schema(required = true)]
    pub subject: Option<String>,
    #[schema(required = true)]
    pub actor: Option<String>,
    /// The id of the management key that asked, or `<issuer>#<subject>`.
    pub caller: String,
    pub request_id: String,
    /// Which life of which node decided.
    pub node: String,
    /// How long the decision took, in microseconds.
    pub latency_us: u64,
}

impl UsageEventBody {
    /// # Errors
    /// [`db::Error::Corrupt`] names the event whose detail cannot be read.
    pub fn new(event: StoredEvent) -> db::Result<Self> {
        let detail: Detail = serde_json::from_str(&event.detail).map_err(|error| {
            db::Error::Corrupt(format!("the detail of usage event {}: {error}", event.id))
        })?;
        Ok(Self {
            id: event.id,
            at: event.at,
            key_id: event.key_id,
            secret_id: event.secret_id,
            superseded: event.superseded != 0,
            consumer_id: event.consumer_id,
            service: event.service,
            environment: event.environment,
            operation: event.operation,
            outcome: event.outcome,
            required_scopes: detail.required_scopes,
            any_scopes: detail.any_scopes,
            cost: detail.cost,
            ip: event.ip,
            method: detail.method,
            path: detail.path,
            user_agent: detail.user_agent,
            context: detail.context,
            token_id: event.token_id,
            subject: event.subject,
            actor: event.actor,
            caller: event.caller,
            request_id: event.request_id,
            node: event.node,
            latency_us: detail.latency_us,
        })
    }

    /// One line, its end included, whatever stands in the texts: what some readers take for the end of
    /// a line, or a terminal for a command, is written as JSON can write it too.
    ///
    /// # Errors
    /// None that can be met: the texts are texts.
    pub fn line(&self) -> serde_json::Result<String> {
        let json = serde_json::to_string(self)?;
        let mut line = escape(&json).into_owned();
        line.push('\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        let text = "a\nb\r\u{85}\u{2028}\u{2029}\u{1b}[2J\u{202e}\"\\\0\u{7f}é";
        let event = StoredEvent {
            tenant_id: String::new(),
            at: Timestamp::from_millis(0),
            id: "evt_1".to_owned(),
            node: "n".to_owned(),
            batch: 1,
            key_id: text.to_owned(),
            secret_id: text.to_owned(),
            superseded: 0,
            consumer_id: text.to_owned(),
            service: text.to_owned(),
            environment: text.to_owned(),
            operation: "verify".to_owned(),
            outcome: "valid".to_owned(),
            ip: Some(text.to_owned()),
            caller: text.to_owned(),
            request_id: text.to_owned(),
            token_id: Some(text.to_owned()),
            subject: Some(text.to_owned()),
            actor: Some(text.to_owned()),
            detail: serde_json::json!({"path": text, "context": {text: text}}).to_string(),
        };
        let event = UsageEventBody::new(event).unwrap();
        let line = event.line().unwrap();
        let (json, end) = line.split_at(line.len() - 1);
        assert_eq!(end, "\n");
        assert!(!json.contains(
            |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}')
        ));
        let read: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(read["path"], text);
        assert_eq!(read["context"][text], text);
    }
}

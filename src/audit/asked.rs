//! The words that a trail may be asked for.

use serde::{Deserialize, Deserializer, de};

use super::action::{actions_on, is_action, is_kind, kinds};

pub(super) fn action<'de, D: Deserializer<'de>>(asked: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(asked)?;
    if is_action(&text) {
        return Ok(Some(text));
    }
    let noun = text.split_once('.').map_or("", |(noun, _)| noun);
    let known = actions_on(noun);
    let which = if known.is_empty() {
        format!("<noun>.<verb>, such as key.revoke, of {}", nouns())
    } else {
        known.join(", ")
    };
    let wanted = format!("must be the name of an action, {which}");
    Err(de::Error::custom(wanted))
}

pub(super) fn target_kind<'de, D: Deserializer<'de>>(asked: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(asked)?;
    if is_kind(&text) {
        return Ok(Some(text));
    }
    let wanted = format!("must be the noun of an action: {}", nouns());
    Err(de::Error::custom(wanted))
}

fn nouns() -> String {
    kinds().join(", ")
}

#[cfg(test)]
mod tests {
    use crate::audit::EventFilter;
    use crate::http::query::Params;

    fn read(query: &str) -> Result<EventFilter, String> {
        let read = Params::parse(query).and_then(|params| params.deserialize());
        read.map_err(|fault| format!("{} {}", fault.pointer, fault.detail))
    }

    #[test]
    fn what_is_no_action_and_no_kind_is_refused_by_name() {
        for query in [
            "",
            "revoke",
            "key.",
            ".revoke",
            "Key.Revoke",
            "key.revoke.x",
            "key%20.x",
            "key.crate",
            "kee.revoke",
        ] {
            let told = read(&format!("action={query}")).unwrap_err();
            assert!(
                told.starts_with("action must be the name of an action, "),
                "{told}"
            );
        }
        for query in ["", "key.revoke", "Key", "key_1", " key", "kee"] {
            let told = read(&format!("target_kind={query}")).unwrap_err();
            assert!(
                told.starts_with("target_kind must be the noun of "),
                "{told}"
            );
        }
        let told = read("action=audit_key.create").unwrap_err();
        let known = "audit_key.adopt, audit_key.begin";
        assert_eq!(
            told,
            format!("action must be the name of an action, {known}")
        );
        let told = read("action=kee.revoke").unwrap_err();
        assert!(told.contains("of access_review, "), "{told}");
        let good = read("action=signing_key.create&target_kind=signing_key").unwrap();
        assert_eq!(good.action.as_deref(), Some("signing_key.create"));
        assert_eq!(good.target_kind.as_deref(), Some("signing_key"));
    }
}

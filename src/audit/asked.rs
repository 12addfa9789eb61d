//! The words that a trail may be asked for. Which there are grows with the product, so their shape counts.

use serde::{Deserialize, Deserializer, de};

/// A noun or a verb of an action.
fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

pub(super) fn action<'de, D: Deserializer<'de>>(asked: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(asked)?;
    match text.split_once('.') {
        Some((noun, verb)) if is_word(noun) && is_word(verb) => Ok(Some(text)),
        _ => Err(de::Error::custom(
            "must be the name of an action, <noun>.<verb> of a-z and '_', such as key.revoke",
        )),
    }
}

pub(super) fn target_kind<'de, D: Deserializer<'de>>(asked: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(asked)?;
    if !is_word(&text) {
        return Err(de::Error::custom(
            "must be the noun of an action, of a-z and '_', such as key",
        ));
    }
    Ok(Some(text))
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
        ] {
            let told = read(&format!("action={query}")).unwrap_err();
            assert!(
                told.starts_with("action must be the name of an action, "),
                "{told}"
            );
        }
        for query in ["", "key.revoke", "Key", "key_1", " key"] {
            let told = read(&format!("target_kind={query}")).unwrap_err();
            assert!(
                told.starts_with("target_kind must be the noun of "),
                "{told}"
            );
        }
        let good = read("action=signing_key.create&target_kind=signing_key").unwrap();
        assert_eq!(good.action.as_deref(), Some("signing_key.create"));
        assert_eq!(good.target_kind.as_deref(), Some("signing_key"));
    }
}

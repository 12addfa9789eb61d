//! `[database]`: which database holds the truth.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::db::Target;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// By default `sqlite:<data_dir>/keystead.db`.
    pub url: DatabaseUrl,
}

/// Shown without its password.
#[derive(Clone, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseUrl {
    target: Target,
    redacted: String,
    has_password: bool,
}

impl DatabaseUrl {
    pub(super) fn default_text(data_dir: &Path) -> String {
        format!("sqlite:{}", data_dir.join("keystead.db").display())
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn has_password(&self) -> bool {
        self.has_password
    }
}

impl TryFrom<String> for DatabaseUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let target = Target::parse(&text)?;
        let redacted = redact(&text);
        let has_password = redacted != text && !target.is_sqlite();
        Ok(Self {
            target,
            redacted,
            has_password,
        })
    }
}

impl From<DatabaseUrl> for String {
    fn from(url: DatabaseUrl) -> Self {
        url.redacted
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

/// `PostgreSQL` takes a password after the user's name or as a parameter.
fn redact(text: &str) -> String {
    const HIDDEN: &str = "***";
    if text.starts_with("sqlite:") {
        return text.to_owned();
    }
    let Ok(mut url) = Url::parse(text) else {
        return HIDDEN.to_owned();
    };
    if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
        return HIDDEN.to_owned();
    }
    let is_secret = |name: &str| name.to_ascii_lowercase().contains("password");
    if url.query_pairs().any(|(name, _)| is_secret(&name)) {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| {
                let value = if is_secret(&name) {
                    HIDDEN.into()
                } else {
                    value
                };
                (name.into_owned(), value.into_owned())
            })
            .collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_url_is_shown_without_its_password() {
        for text in [
            "postgres://keystead:hush@db.example.com:5432/keystead?sslmode=require",
            "postgresql://keystead@db.example.com/keystead?password=hush&sslmode=require",
        ] {
            let url = DatabaseUrl::try_from(text.to_owned()).unwrap();
            assert!(url.has_password(), "{url:?}");
            for shown in [format!("{url:?}"), String::from(url)] {
                assert!(!shown.contains("hush"), "{shown}");
                assert!(shown.contains("db.example.com"), "{shown}");
                assert!(shown.contains("***"), "{shown}");
            }
        }
        let url = DatabaseUrl::try_from("postgres://keystead@localhost/keystead".to_owned());
        assert!(!url.unwrap().has_password());
    }

    #[test]
    fn a_bad_database_url_is_refused_without_repeating_it() {
        for text in [
            "mysql://root:hush@localhost/x",
            "postgres://keystead:hush@localhost/x?sslmode=maybe",
            "postgres://keystead:hush@local host/x",
            "postgres://keystead:hush@localhost:99999/x",
            "postgres://keystead@localhost/x?hush=1",
            "sqlite:",
            "hush",
        ] {
            let problem = DatabaseUrl::try_from(text.to_owned()).unwrap_err();
            assert!(!problem.contains("hush"), "{text}: {problem}");
        }
    }
}

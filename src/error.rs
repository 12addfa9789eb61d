//! What an administrative operation can answer instead of a result.
//!
//! One enum for all features, without HTTP in it: a variant exists where a program needs the
//! difference. `http/problem.rs` gives each its code and status.

use crate::db;

/// One thing that is wrong with the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// RFC 6901 JSON pointer into the body, or the name of a query parameter.
    pub pointer: String,
    /// What it must be; never repeats a secret value.
    pub detail: String,
}

impl Violation {
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }

    /// The same of what stands at the pointer `place`.
    #[must_use]
    pub fn under(self, place: &str) -> Self {
        Self {
            pointer: format!("{place}{}", self.pointer),
            ..self
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the input is not valid")]
    Invalid(Vec<Violation>),
    /// The object is not there, or belongs to another tenant: nobody is told which.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The caller lacks this management scope.
    #[error("the scope {0} is needed")]
    Forbidden(String),
    /// No scope would help: a setting says no.
    #[error("{0}")]
    NotAllowed(&'static str),
    /// The caller would hand out or wield more than it holds.
    #[error("{0}")]
    Escalation(String),
    #[error("{detail}")]
    Conflict {
        conflict: Conflict,
        detail: String,
        existing_id: Option<String>,
        count: Option<u64>,
        /// Which places of the input it is about, where it has several.
        errors: Vec<Violation>,
    },
    #[error("the object has version {current}, not the one in If-Match")]
    VersionMismatch { current: i64 },
    #[error("the Idempotency-Key was used with another body")]
    IdempotencyMismatch,
    #[error("nothing more can be taken on just now")]
    Busy,
    #[error(transparent)]
    Store(#[from] db::Error),
}

/// Why the state of things does not allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    SlugTaken,
    ExternalIdTaken,
    HasLiveKeys,
    TooManySecrets,
    KeyRevoked,
    KeyExpired,
    CountChanged,
    InProgress,
    ReviewClosed,
    ReviewUndecided,
    /// `default` and `keystead` are part of the house.
    BuiltIn,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(pointer, detail)])
    }

    /// The same of what stands at the pointer `place`.
    #[must_use]
    pub fn under(self, place: &str) -> Self {
        match self {
            Self::Invalid(wrong) => Self::Invalid(
                wrong
                    .into_iter()
                    .map(|violation| violation.under(place))
                    .collect(),
            ),
            error => error,
        }
    }

    pub fn conflict(conflict: Conflict, detail: impl Into<String>) -> Self {
        Self::Conflict {
            conflict,
            detail: detail.into(),
            existing_id: None,
            count: None,
            errors: Vec::new(),
        }
    }

    pub fn taken(conflict: Conflict, detail: impl Into<String>, existing_id: &str) -> Self {
        Self::Conflict {
            conflict,
            detail: detail.into(),
            existing_id: Some(existing_id.to_owned()),
            count: None,
            errors: Vec::new(),
        }
    }
}

impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        Self::Store(error.into())
    }
}

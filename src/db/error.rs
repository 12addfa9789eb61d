//! Why the database did not answer.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

pub type Result<T> = std::result::Result<T, Error>;

/// Why the database did not answer. What a caller is told is decided in `http/problem.rs`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, or a connection broke.
    #[error("the database cannot be reached")]
    Unavailable(#[source] anyhow::Error),
    /// It can be reached and says no: a wrong password, no such database.
    #[error("the database refuses us: {0}")]
    Refused(String),
    /// It did not answer in time, or too many wait for it; or two waited for each other, and it gave us up
    /// so that the other could go on.
    #[error("the database did not answer in time")]
    Busy,
    /// A unique index already holds the value; names the index.
    #[error("a unique value is taken ({0})")]
    Taken(String),
    /// Anything else: a defect of ours, or a damaged database.
    #[error("a query failed")]
    Query(#[source] DieselError),
    /// A stored value that we cannot have written.
    #[error("a stored value does not make sense: {0}")]
    Corrupt(String),
    /// The end of an audit chain is not as we left it: nothing is added to it, and nothing signed.
    #[error("an audit chain is broken: {0}")]
    AuditBroken(String),
}

impl Error {
    /// The same for another who waited for the same work.
    #[must_use]
    pub fn repeated(&self) -> Self {
        match self {
            Self::Unavailable(cause) => Self::Unavailable(anyhow::anyhow!("{cause:#}")),
            Self::Refused(text) => Self::Refused(text.clone()),
            Self::Busy => Self::Busy,
            Self::Taken(index) => Self::Taken(index.clone()),
            Self::Query(cause) => {
                Self::Query(DieselError::QueryBuilderError(cause.to_string().into()))
            }
            Self::Corrupt(what) => Self::Corrupt(what.clone()),
            Self::AuditBroken(what) => Self::AuditBroken(what.clone()),
        }
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        match &error {
            DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, info) => {
                Self::Taken(info.constraint_name().unwrap_or(info.message()).to_owned())
            }
            DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            )
            | DieselError::BrokenTransactionManager => Self::Unavailable(error.into()),
            // SQLSTATE 40001. Of 40P01 there is the text alone, as of those that took too long.
            DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => Self::Busy,
            DieselError::DatabaseError(_, info)
                if [
                    "statement timeout",
                    "lock timeout",
                    "deadlock detected",
                    "database is locked",
                ]
                .iter()
                .any(|text| info.message().contains(text)) =>
            {
                Self::Busy
            }
            DieselError::DatabaseError(_, info)
                if [
                    "disk is full",
                    "No space left on device",
                    "disk I/O error",
                    "readonly",
                    // SQLSTATE 57P01 to 57P03, of which there is the text alone too.
                    "terminating connection due to",
                    "the database system is",
                ]
                .iter()
                .any(|text| info.message().contains(text)) =>
            {
                Self::Unavailable(error.into())
            }
            _ => Self::Query(error),
        }
    }
}

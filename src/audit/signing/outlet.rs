//! Where statements leave the database: a log line, a file, and another file if one is set.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::statement::Statement;
use crate::db;

/// The files that statements are appended to, one a line.
#[derive(Clone, Debug, Default)]
pub struct Outlet {
    pub files: Vec<PathBuf>,
}

impl Outlet {
    /// Tells the log and every file.
    ///
    /// # Errors
    /// A file that does not take it: then it has not left the database, and is to be made again.
    pub fn tell(&self, statement: &Statement) -> db::Result<()> {
        let line = statement.canonical()?;
        for path in &self.files {
            append(path, &line).map_err(|error| {
                tracing::error!(
                    target: "security",
                    path = %path.display(),
                    %error,
                    "a checkpoint of the audit trail could not be written to its file"
                );
                db::Error::Unavailable(anyhow::anyhow!("{}: {error}", path.display()))
            })?;
        }
        tracing::info!(
            target: "audit",
            kind = statement.kind.as_str(),
            tenant = statement.tenant,
            seq = statement.seq,
            hash = statement.hash,
            kid = statement.kid,
            signature = statement.signature,
            at = %statement.at,
            from_seq = statement.from_seq,
            count = statement.count,
            "signed a checkpoint"
        );
        Ok(())
    }
}

/// One write for the whole line, so that two processes do not mix theirs, and on the disk when it
/// returns.
fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file: File = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_data()
}

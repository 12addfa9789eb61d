//! Where statements leave the database: a log line, a file, and another file if one is set.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
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
/// returns. Behind a line that breaks off a new one begins; nothing is ever taken out of the file.
fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file: File = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    // What cannot be read is taken to be whole.
    let begin = if breaks_off(path).unwrap_or_default() {
        "\n"
    } else {
        ""
    };
    file.write_all(format!("{begin}{line}\n").as_bytes())?;
    file.sync_data()
}

/// Whether the last line is there in part only, as a full disk or a power cut leaves it.
fn breaks_off(path: &Path) -> io::Result<bool> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() == 0 {
        return Ok(false);
    }
    let (mut file, mut last) = (File::open(path)?, [0]);
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

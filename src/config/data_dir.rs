//! The data folder: made private, and held by one server at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use super::{Config, ConfigError};

/// Held while the server runs; the kernel ends it with the process, whatever ends that.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

/// Why the server cannot have the data folder.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "data_dir {path} is in use by another keystead{by}; stop it, or give this one a folder of its own"
    )]
    InUse { path: String, by: String },
}

impl Config {
    /// Makes the data folder if it is not there, for its owner alone.
    ///
    /// # Errors
    /// Names `data_dir` and what the system says.
    pub fn create_data_dir(&self) -> Result<(), ConfigError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.data_dir)
            .map_err(|error| self.unusable("cannot be made", &error))
    }

    /// Makes the data folder and takes its lock. Only the server does: maintenance commands work
    /// beside it.
    pub fn lock_data_dir(&self) -> Result<DataDirLock, LockError> {
        self.create_data_dir()?;
        let path = self.data_dir.join("keystead.lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.unusable("cannot be written to", &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.take(20).read_to_string(&mut pid);
                let by = match (read, pid.trim().parse::<u32>()) {
                    (Ok(_), Ok(pid)) => format!(" (process {pid})"),
                    (Ok(_) | Err(_), _) => String::new(),
                };
                return Err(LockError::InUse {
                    path: self.data_dir.display().to_string(),
                    by,
                });
            }
            Err(TryLockError::Error(error)) => {
                return Err(self.unusable("cannot be locked", &error).into());
            }
        }
        // For the message of who comes second; nothing depends on it.
        let noted = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        noted.map_err(|error| self.unusable("cannot be written to", &error))?;
        Ok(DataDirLock { _file: file })
    }

    fn unusable(&self, what: &str, error: &std::io::Error) -> ConfigError {
        ConfigError::of(
            "data_dir",
            format!(
                "= {} {what}: {error}; give it to the user that runs keystead, or name another",
                self.data_dir.display()
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn config(data_dir: std::path::PathBuf) -> Config {
        Config {
            data_dir,
            ..Config::default()
        }
    }

    #[test]
    fn the_data_folder_is_private_and_belongs_to_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path().join("data"));
        let held = config.lock_data_dir().unwrap();
        assert_eq!(
            fs::metadata(&config.data_dir).unwrap().mode() & 0o777,
            0o700
        );
        let refused = config.lock_data_dir().unwrap_err().to_string();
        let pid = std::process::id();
        assert!(
            refused.contains(&format!("in use by another keystead (process {pid})")),
            "{refused}"
        );
        drop(held);
        config.lock_data_dir().unwrap();
    }

    #[test]
    fn an_unusable_data_folder_is_named() {
        let config = config("/dev/null/data".into());
        let refused = config.lock_data_dir().unwrap_err().to_string();
        assert!(
            refused.starts_with("data_dir = /dev/null/data cannot be made:"),
            "{refused}"
        );
    }
}

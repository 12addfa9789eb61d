//! Files that hold secrets: only their owner may read them.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use zeroize::Zeroizing;

/// No secret is longer.
const BYTES_MAX: u64 = 64 * 1024;

/// Reads a secret's file without the newline at its end.
///
/// # Errors
/// What is wrong with the file and how to mend it, to follow its setting's name; never its content.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let shown = path.display();
    let cannot = |error: std::io::Error| format!("names {shown}, which cannot be read: {error}");
    let file = File::open(path).map_err(cannot)?;
    // Of the open file, so that nobody exchanges it between the look and the reading.
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err(format!("names {shown}, which is not a file"));
    }
    if !is_private(&metadata) {
        return Err(format!(
            "names {shown}, which others may read (mode {:03o}); mend it with: chmod 600 {shown}",
            metadata.mode() & 0o777
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    let kept = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(kept);
    Ok(text)
}

/// Nobody but the owner, or a group that root chose for its own file: what a Kubernetes secret with
/// `fsGroup` looks like. `PostgreSQL` draws the same line for its TLS keys.
pub(super) fn is_private(metadata: &Metadata) -> bool {
    let open = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    metadata.mode() & open == 0
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "hush\n").unwrap();
        for mode in [0o644, 0o604, 0o660, 0o602, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let problem = read(&path).unwrap_err();
            assert!(problem.contains("chmod 600"), "{mode:o}: {problem}");
            assert!(!problem.contains("hush"), "{problem}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path).unwrap().as_str(), "hush");
        }
    }

    #[test]
    fn a_missing_file_or_a_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap_err().contains("is not a file"));
        let problem = read(&dir.path().join("nothing")).unwrap_err();
        assert!(
            problem.contains("nothing, which cannot be read"),
            "{problem}"
        );
    }
}

//! Events as a file for a SIEM: one JSON object a line, in files of a bounded size.
//!
//! 1. What is written is read back from the ledger, batch by batch, before the batch leaves the journal:
//!    exactly what the ledger took. After a crash between the two a batch is written once more, and its
//!    events have the same ids as before.
//! 2. A file is on the disk before the batch leaves the journal. Half a line, as a crash leaves it, is
//!    cut off when the file is opened again.
//! 3. What a disk does not take is counted and told, and the ledger goes on: it has the events.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::event::UsageEventBody;
use super::store::events::StoredEvent;
use crate::clock::Clock;
use crate::db;
use crate::telemetry::escape;
use crate::time::Timestamp;

/// A file that takes nothing is told of once a minute.
const TOLD_EVERY_US: u64 = 60_000_000;

/// So much is read at once while the end of the last whole line is looked for.
const TAIL_BYTES: u64 = 64 * 1024;

/// How much is written where.
#[derive(Clone, Debug)]
pub struct FileSettings {
    pub path: PathBuf,
    /// A file that would grow beyond is moved aside first.
    pub bytes_max: u64,
    /// How many of those that were moved aside stay.
    pub files_kept: u32,
}

/// The file, cheap to clone.
#[derive(Clone, Debug)]
pub struct EventFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: FileSettings,
    open: Mutex<Option<Open>>,
    lost: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

/// What was lost since it was last told.
#[derive(Debug, Default)]
struct Told {
    at_us: Option<u64>,
    events: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

#[derive(Serialize)]
struct Line<'a> {
    /// Lists and exports are of one tenant; this is of all.
    tenant_id: &'a str,
    #[serde(flatten)]
    event: &'a UsageEventBody,
}

impl EventFile {
    pub fn new(settings: FileSettings) -> Self {
        Self(Arc::new(Inner {
            settings,
            open: Mutex::new(None),
            lost: AtomicU64::new(0),
            told: Mutex::default(),
        }))
    }

    /// Writes `events`, and has them on the disk when it returns. What could not be written is counted
    /// and told. Blocks for as long as the disk does.
    pub fn write(&self, events: Vec<StoredEvent>) {
        let times = events.iter().map(|event| event.at);
        let (first, last) = (times.clone().min(), times.max());
        let count = events.len() as u64;
        let lines: Vec<String> = events.into_iter().filter_map(line).collect();
        let unreadable = count.saturating_sub(lines.len() as u64);
        self.0.lost.fetch_add(unreadable, Ordering::Relaxed);
        let count = lines.len() as u64;
        let mut open = lock(&self.0.open);
        if let Err(error) = self.0.settings.append(&mut open, &lines) {
            // Opened anew the next time, and mended.
            *open = None;
            drop(open);
            self.tell(count, (first, last), &error);
        }
    }

    /// How many events the file did not take.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// The first loss at once, then what was lost in each minute.
    fn tell(&self, events: u64, times: (Option<Timestamp>, Option<Timestamp>), error: &io::Error) {
        self.0.lost.fetch_add(events, Ordering::Relaxed);
        let mut told = lock(&self.0.told);
        told.events = told.events.saturating_add(events);
        told.first = told.first.or(times.0);
        told.last = told.last.max(times.1);
        let now = Clock::uptime_us();
        if told
            .at_us
            .is_some_and(|at| now.saturating_sub(at) < TOLD_EVERY_US)
        {
            return;
        }
        let time = |at: Option<Timestamp>| at.map(|at| at.to_string()).unwrap_or_default();
        tracing::error!(
            target: "security",
            path = %self.0.settings.path.display(),
            %error,
            events = told.events,
            from = time(told.first),
            to = time(told.last),
            "the file of events did not take them; the ledger has them"
        );
        *told = Told {
            at_us: Some(now),
            ..Told::default()
        };
    }
}

/// A detail that cannot be read keeps no other event out: the list of events names it.
fn line(event: StoredEvent) -> Option<String> {
    let tenant_id = event.tenant_id.clone();
    let made = UsageEventBody::new(event).and_then(|event| {
        let line = Line {
            tenant_id: &tenant_id,
            event: &event,
        };
        serde_json::to_string(&line)
            .map_err(|error| db::Error::Corrupt(format!("a line of an event: {error}")))
    });
    match made {
        Ok(json) => {
            let mut line = escape(&json).into_owned();
            line.push('\n');
            Some(line)
        }
        Err(error) => {
            tracing::error!(%error, "an event is left out of the file of events");
            None
        }
    }
}

impl FileSettings {
    fn append(&self, open: &mut Option<Open>, lines: &[String]) -> io::Result<()> {
        let mut text = String::new();
        for line in lines {
            let waiting = text.len() as u64;
            let bytes = self.opened(open)?.bytes + waiting;
            if bytes > 0 && bytes + line.len() as u64 > self.bytes_max {
                put(self.opened(open)?, &text)?;
                text.clear();
                self.rotate()?;
                *open = None;
            }
            text.push_str(line);
        }
        put(self.opened(open)?, &text)
    }

    /// Whoever else moves the file aside finds that the next line goes into a new one.
    fn opened<'a>(&self, open: &'a mut Option<Open>) -> io::Result<&'a mut Open> {
        let is_there = open.as_ref().is_some_and(|open| {
            let (ours, there) = (open.file.metadata(), fs::metadata(&self.path));
            matches!((ours, there), (Ok(ours), Ok(there))
                if (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
        });
        if !is_there {
            *open = None;
        }
        match open {
            Some(open) => Ok(open),
            None => Ok(open.insert(Open::new(&self.path)?)),
        }
    }

    /// `<file>` becomes `<file>.1`, that `<file>.2`, and the oldest one goes.
    fn rotate(&self) -> io::Result<()> {
        for number in (1..self.files_kept).rev() {
            move_aside(&self.numbered(number), &self.numbered(number + 1))?;
        }
        move_aside(&self.path, &self.numbered(1))?;
        let folder = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

fn move_aside(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let bytes = whole_lines(&mut file)?;
        if bytes < file.metadata()?.len() {
            file.set_len(bytes)?;
        }
        Ok(Self { file, bytes })
    }
}

/// Where the last whole line ends.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut tail = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(TAIL_BYTES);
        tail.clear();
        file.seek(SeekFrom::Start(begin))?;
        Read::by_ref(file)
            .take(end - begin)
            .read_to_end(&mut tail)?;
        if let Some(at) = tail.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// All of `text` and on the disk, or nothing of it as far as the disk lets us.
fn put(open: &mut Open, text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let written = open
        .file
        .write_all(text.as_bytes())
        .and_then(|()| open.file.sync_data());
    if written.is_err() {
        let _what_is_left_is_mended_when_it_is_opened = open.file.set_len(open.bytes);
        return written;
    }
    open.bytes += text.len() as u64;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn event(n: u64) -> StoredEvent {
        StoredEvent {
            tenant_id: "ten_1".to_owned(),
            at: Timestamp::from_millis(1_795_593_600_000),
            id: format!("evt_{n}"),
            node: "n".to_owned(),
            batch: 1,
            key_id: "key_1".to_owned(),
            secret_id: "sec_1".to_owned(),
            superseded: 0,
            consumer_id: "con_1".to_owned(),
            service: "billing".to_owned(),
            environment: "live".to_owned(),
            operation: "verify".to_owned(),
            outcome: "valid".to_owned(),
            ip: None,
            caller: "key_2".to_owned(),
            request_id: format!("request\n{n}"),
            token_id: None,
            subject: None,
            actor: None,
            detail: "{\"cost\":1,\"latency_us\":5}".to_owned(),
        }
    }

    fn events(numbers: std::ops::Range<u64>) -> Vec<StoredEvent> {
        numbers.map(event).collect()
    }

    fn in_folder(folder: &Path, bytes_max: u64, files_kept: u32) -> EventFile {
        EventFile::new(FileSettings {
            path: folder.join("u.ndjson"),
            bytes_max,
            files_kept,
        })
    }

    fn ids(path: &Path) -> Vec<String> {
        fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(line["tenant_id"], "ten_1");
                line["id"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn a_full_file_is_moved_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let file = in_folder(folder.path(), 2_000, 2);
        for n in 0..20 {
            file.write(events(n * 3..n * 3 + 3));
        }
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["u.ndjson", "u.ndjson.1", "u.ndjson.2"]);
        let mut all = Vec::new();
        for name in ["u.ndjson.2", "u.ndjson.1", "u.ndjson"] {
            let path = folder.path().join(name);
            let meta = fs::metadata(&path).unwrap();
            assert!(meta.len() <= 2_000 && meta.len() > 0, "{name}");
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
            all.extend(ids(&path));
        }
        let last: Vec<String> = (60 - all.len()..60).map(|n| format!("evt_{n}")).collect();
        assert!(all.len() > 6);
        assert_eq!(all, last);
        assert_eq!(file.lost(), 0);
    }

    #[test]
    fn half_a_line_is_cut_off_and_a_file_moved_by_others_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("u.ndjson");
        in_folder(folder.path(), 100_000, 2).write(events(0..2));
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(&vec![b'x'; 100_000]).unwrap();
        let file = in_folder(folder.path(), 100_000, 2);
        file.write(events(2..3));
        assert_eq!(ids(&path), ["evt_0", "evt_1", "evt_2"]);
        let aside = folder.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        file.write(events(3..4));
        assert_eq!(ids(&path), ["evt_3"]);
        assert_eq!(ids(&aside).len(), 3);
    }

    #[test]
    fn an_event_that_cannot_be_read_is_counted_and_keeps_no_other_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = in_folder(folder.path(), 100_000, 2);
        let mut some = events(0..3);
        some[1].detail = "{".to_owned();
        file.write(some);
        assert_eq!(ids(&folder.path().join("u.ndjson")), ["evt_0", "evt_2"]);
        assert_eq!(file.lost(), 1);
    }

    #[test]
    fn what_the_disk_does_not_take_is_counted() {
        let file = EventFile::new(FileSettings {
            path: "/dev/full".into(),
            bytes_max: 100_000,
            files_kept: 1,
        });
        file.write(events(0..3));
        file.write(events(3..5));
        assert_eq!(file.lost(), 5);
    }
}

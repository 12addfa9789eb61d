//! Writes log lines on a thread of its own, so that a full disk, a closed pipe or a reader that
//! sleeps costs log lines, which are counted, and never a request.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

use super::escape;

/// Lines that may wait for the reader; at 300 bytes each some 2.5 MB.
const LINES_WAITING_MAX: usize = 8192;

/// Where lines go. Unbuffered: a line is written or lost, never half kept.
#[derive(Debug)]
pub(super) enum Sink {
    File(File),
    /// It was closed before we started.
    Closed,
}

/// Counts lines that were not written.
#[derive(Clone, Debug, Default)]
pub struct LostLines(Counter);

#[derive(Clone, Debug)]
pub(super) struct LogWriter {
    queue: Option<SyncSender<Entry>>,
    lost: LostLines,
}

enum Entry {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

impl Sink {
    pub(super) fn of(stream: &impl AsFd) -> Self {
        match stream.as_fd().try_clone_to_owned() {
            Ok(fd) => Self::File(fd.into()),
            Err(_closed) => Self::Closed,
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(line),
            Self::Closed => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl LostLines {
    pub fn count(&self) -> u64 {
        self.0.get()
    }

    /// For the registry of the metrics; it goes on counting.
    pub fn into_counter(self) -> Counter {
        self.0
    }

    fn add_one(&self) {
        self.0.inc();
    }
}

impl LogWriter {
    pub(super) fn start(sink: Sink) -> Self {
        let lost = LostLines::default();
        let (queue, entries) = sync_channel(LINES_WAITING_MAX);
        let counted = lost.clone();
        let started = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(sink, &entries, &counted));
        Self {
            queue: started.ok().map(|_thread| queue),
            lost,
        }
    }

    pub(super) fn lost_lines(&self) -> LostLines {
        self.lost.clone()
    }

    pub(super) fn flush(&self, wait_max: Duration) {
        let (done, waiting) = sync_channel(1);
        if let Some(queue) = &self.queue
            && queue.try_send(Entry::Flush(done)).is_ok()
        {
            // A reader that sleeps must not keep the process from ending.
            let _written_or_not = waiting.recv_timeout(wait_max);
        }
    }

    fn enqueue(&self, line: Vec<u8>) {
        let sent = match &self.queue {
            Some(queue) => queue.try_send(Entry::Line(line)),
            None => Err(TrySendError::Disconnected(Entry::Line(line))),
        };
        if sent.is_err() {
            self.lost.add_one();
        }
    }
}

fn write_all(mut sink: Sink, entries: &Receiver<Entry>, lost: &LostLines) {
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                if sink.write(&line).is_err() {
                    lost.add_one();
                }
            }
            Entry::Flush(done) => {
                let _nobody_waits_any_more = done.try_send(());
            }
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// The formatter gives one whole record at a time. Whatever it holds, it becomes one line, and the
/// formatter is never told of a failure: it would print it to standard error.
impl Write for &LogWriter {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = escape(text).into_owned().into_bytes();
        line.push(b'\n');
        self.enqueue(line);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

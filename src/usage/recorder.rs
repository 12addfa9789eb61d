//! Where uses are collected until they are journaled: a buffer a worker, taken as a whole on a timer.
//!
//! A use is appended under a lock that nobody else wants but who takes the buffer, five times a second
//! and for as long as it takes to exchange a vector. No other thread is woken. When nobody takes a
//! buffer for so long that it is full, further uses are only counted: events are shed before counts,
//! and how many is told.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::codec::{self, Use};
use super::fold::Folded;

/// More workers than that share buffers.
const BUFFERS: usize = 64;

/// A buffer that nobody takes is full at so many bytes: some 30,000 uses.
const BUFFER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Collects uses; one for the process.
#[derive(Debug)]
pub struct Recorder {
    buffers: Box<[Mutex<Buffer>]>,
    is_on: bool,
    shed: AtomicU64,
}

#[derive(Debug, Default)]
struct Buffer {
    block: Vec<u8>,
    /// What is counted only, because the block is full.
    folded: Folded,
}

/// What was collected since the last time.
#[derive(Debug, Default)]
pub struct Collected {
    /// See [`codec::read`].
    pub block: Vec<u8>,
    pub folded: Folded,
}

impl Collected {
    pub fn is_empty(&self) -> bool {
        self.block.is_empty() && self.folded.is_empty()
    }

    pub fn merge(&mut self, later: Self) {
        if self.block.is_empty() {
            self.block = later.block;
        } else {
            self.block.extend_from_slice(&later.block);
        }
        self.folded.merge(later.folded);
    }
}

impl Recorder {
    /// With `is_on` false nothing is recorded.
    pub fn new(is_on: bool) -> Self {
        Self {
            buffers: (0..BUFFERS).map(|_| Mutex::default()).collect(),
            is_on,
            shed: AtomicU64::new(0),
        }
    }

    /// Whether there is any use in describing one.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    pub fn record<S: Serialize>(&self, used: &Use<'_, S>) {
        if !self.is_on {
            return;
        }
        let Some(mut buffer) = self.mine() else {
            return;
        };
        if buffer.block.len() < BUFFER_BYTES_MAX {
            codec::append(&mut buffer.block, used);
            return;
        }
        let mut one = Vec::new();
        codec::append(&mut one, used);
        for record in codec::read(codec::FORM, &one).unwrap_or_default() {
            buffer.folded.add(record);
        }
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes what was collected. The next buffers begin as long as the last ones were.
    pub fn take(&self) -> Collected {
        let mut all = Collected::default();
        for buffer in &self.buffers {
            let mut buffer = lock(buffer);
            if buffer.block.is_empty() {
                continue;
            }
            let next = Vec::with_capacity(buffer.block.len());
            let block = std::mem::replace(&mut buffer.block, next);
            let folded = std::mem::take(&mut buffer.folded);
            drop(buffer);
            all.merge(Collected { block, folded });
        }
        all
    }

    /// How many uses left no event so far because a buffer was full.
    pub fn shed(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }

    fn mine(&self) -> Option<MutexGuard<'_, Buffer>> {
        self.buffers.get(slot() % BUFFERS).map(lock)
    }
}

/// A number for each thread.
fn slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    MINE.with(|mine| {
        mine.get().unwrap_or_else(|| {
            let slot = NEXT.fetch_add(1, Ordering::Relaxed);
            mine.set(Some(slot));
            slot
        })
    })
}

fn lock(buffer: &Mutex<Buffer>) -> MutexGuard<'_, Buffer> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

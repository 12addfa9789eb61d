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

use super::codec::{self, Block, Use};
use super::fold::Folded;

/// More workers than that share buffers.
const BUFFERS: usize = 64;

/// A buffer that nobody takes is full at so many bytes: 30,000 uses that differ in all, or 60,000 that
/// have much in common.
const BUFFER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// So many are kept for the next time.
const SPARE_MAX: usize = 4;

/// Collects uses; one for the process.
#[derive(Debug)]
pub struct Recorder {
    buffers: Box<[Mutex<Buffer>]>,
    /// Blocks that were written down, empty: so long ones are not made anew for every time.
    spare: Mutex<Vec<Vec<u8>>>,
    is_on: bool,
    shed: AtomicU64,
}

#[derive(Debug, Default)]
struct Buffer {
    block: Block,
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

    /// Adds what was collected later; answers a block that is not needed for it.
    pub fn merge(&mut self, mut later: Self) -> Vec<u8> {
        if self.block.is_empty() {
            std::mem::swap(&mut self.block, &mut later.block);
        } else {
            self.block.extend_from_slice(&later.block);
        }
        self.folded.merge(later.folded);
        later.block
    }
}

impl Recorder {
    /// With `is_on` false nothing is recorded.
    pub fn new(is_on: bool) -> Self {
        Self {
            buffers: (0..BUFFERS).map(|_| Mutex::default()).collect(),
            spare: Mutex::default(),
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
        if buffer.block.bytes().len() < BUFFER_BYTES_MAX {
            buffer.block.append(used);
            return;
        }
        let mut one = Block::default();
        one.append(used);
        for record in codec::read(codec::FORM, one.bytes()).unwrap_or_default() {
            buffer.folded.add(record);
        }
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes what was collected.
    pub fn take(&self) -> Collected {
        let mut all = Collected::default();
        for buffer in &self.buffers {
            let next = lock(&self.spare).pop().unwrap_or_default();
            let mut buffer = lock(buffer);
            if buffer.block.bytes().is_empty() {
                drop(buffer);
                self.give_back(next);
                continue;
            }
            let block = std::mem::replace(&mut buffer.block, Block::within(next)).into_bytes();
            let folded = std::mem::take(&mut buffer.folded);
            drop(buffer);
            self.give_back(all.merge(Collected { block, folded }));
        }
        all
    }

    /// Takes a block back, for what is collected next.
    pub fn give_back(&self, mut block: Vec<u8>) {
        let mut spare = lock(&self.spare);
        if (1..=BUFFER_BYTES_MAX).contains(&block.capacity()) && spare.len() < SPARE_MAX {
            block.clear();
            spare.push(block);
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

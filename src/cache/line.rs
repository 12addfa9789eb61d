//! A line before the database: much to load at once is loaded in turn, and nobody is turned away while
//! the line moves.
//!
//! So many loads have a turn that every connection is busy, and no more, so each of them is over while
//! somebody waits for it. Who waits in line waits for others of his kind, not for a fault: when loads are no
//! longer over in time, or too many that were not still run, something is wrong, and that is waited for no
//! longer than a load.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::flights::NoLanding;
use crate::clock::Clock;
use crate::patience;

/// So many wait for one.
const WAITING_MAX: usize = 10_000;

/// Nobody waits longer, however well the line moves: it is no fault that is waited for, so this is no part of
/// what [`patience`] grants. Thousands of keys that come at once to a node that knows none are answered in
/// it.
const LINE_MAX: Duration = Duration::from_secs(4);

/// Turns at loads of one kind.
#[derive(Debug)]
pub struct Line {
    /// A load that takes longer is late.
    load_max: Duration,
    /// So many have a turn at once. When as many are late and still run, something is wrong.
    at_once: usize,
    turns: Arc<Semaphore>,
    waiting: Semaphore,
    past: Arc<Past>,
}

/// What became of the loads that had a turn.
#[derive(Debug, Default)]
struct Past {
    /// When one was last over in time; 0 for never.
    moved_us: AtomicU64,
    /// Those that were not, and still run.
    late: AtomicUsize,
}

/// One of those.
struct Late(Arc<Past>);

/// The right to begin a load.
#[derive(Debug)]
pub struct Turn {
    load_max: Duration,
    place: OwnedSemaphorePermit,
    past: Arc<Past>,
    was_waited_for: bool,
}

impl Line {
    /// Of loads that are waited for no longer than this, of which so many have a turn at once.
    pub fn new(load_max: Duration, at_once: usize) -> Self {
        Self {
            load_max,
            at_once,
            turns: Arc::new(Semaphore::new(at_once)),
            waiting: Semaphore::new(WAITING_MAX),
            past: Arc::default(),
        }
    }

    /// A turn that is free at this instant.
    pub fn turn_now(&self) -> Option<Turn> {
        let place = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        Some(self.turn_at(place, false))
    }

    /// A turn, in line.
    ///
    /// # Errors
    /// [`NoLanding::Late`] if the line stands, [`NoLanding::Full`] if it is too long.
    pub async fn turn(&self) -> Result<Turn, NoLanding> {
        if let Some(turn) = self.turn_now() {
            return Ok(turn);
        }
        let _waiting = self.waiting.try_acquire().map_err(|_all| NoLanding::Full)?;
        let mut place = pin!(Arc::clone(&self.turns).acquire_owned());
        let stands_max = patience::left(self.load_max);
        let begun_us = Clock::uptime_us();
        loop {
            let now_us = Clock::uptime_us();
            let stands = self.stands(begun_us, now_us);
            if stands >= stands_max {
                patience::take(stands);
                return Err(NoLanding::Late);
            }
            let in_line = Duration::from_micros(now_us.saturating_sub(begun_us));
            let rest = LINE_MAX.checked_sub(in_line).ok_or(NoLanding::Full)?;
            if let Ok(place) =
                timeout(rest.min(stands_max.saturating_sub(stands)), &mut place).await
            {
                // Where the line moved to the end nothing was lost to a fault.
                patience::take(self.stands(begun_us, Clock::uptime_us()));
                let place = place.map_err(|_never_closed| NoLanding::Full)?;
                return Ok(self.turn_at(place, true));
            }
        }
    }

    /// How long it has not moved as it should, for who came at `begun_us`.
    fn stands(&self, begun_us: u64, now_us: u64) -> Duration {
        let past = &self.past;
        let since_us = if past.late.load(Ordering::Relaxed) < self.at_once {
            past.moved_us.load(Ordering::Relaxed).max(begun_us)
        } else {
            begun_us
        };
        Duration::from_micros(now_us.saturating_sub(since_us))
    }

    fn turn_at(&self, place: OwnedSemaphorePermit, was_waited_for: bool) -> Turn {
        Turn {
            load_max: self.load_max,
            place,
            past: Arc::clone(&self.past),
            was_waited_for,
        }
    }
}

impl Turn {
    /// Whether something may be there now that was not before.
    pub fn was_waited_for(&self) -> bool {
        self.was_waited_for
    }

    /// Runs a load. One that is late goes on, and stands in nobody's way.
    pub async fn run<F: Future>(self, load: F) -> F::Output {
        let mut load = pin!(load);
        match timeout(self.load_max, &mut load).await {
            Ok(loaded) => {
                let now_us = Clock::uptime_us();
                self.past.moved_us.store(now_us, Ordering::Relaxed);
                loaded
            }
            Err(_late) => {
                let _late = Late::of(self.past);
                drop(self.place);
                load.await
            }
        }
    }
}

impl Late {
    fn of(past: Arc<Past>) -> Self {
        past.late.fetch_add(1, Ordering::Relaxed);
        Self(past)
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.0.late.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    const AT_ONCE: usize = 16;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn however_many_come_each_has_a_turn_while_the_line_moves() {
        let line = Line::new(LONG, AT_ONCE);
        let (at_once, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let waited = join_all((0..5_000).map(async |_| {
            let turn = line.turn().await.unwrap();
            let was_waited_for = turn.was_waited_for();
            turn.run(async {
                most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                at_once.fetch_sub(1, Ordering::SeqCst);
            })
            .await;
            usize::from(was_waited_for)
        }))
        .await;
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
        assert_eq!(waited.iter().sum::<usize>(), 5_000 - AT_ONCE);
        assert_eq!(line.turns.available_permits(), AT_ONCE);
        assert_eq!(line.waiting.available_permits(), WAITING_MAX);
    }

    #[tokio::test]
    async fn a_line_that_stands_is_left_in_time_and_costs_what_it_stood() {
        let line = Line::new(LONG, AT_ONCE);
        let turns: Vec<_> = (0..AT_ONCE).map(|_| line.turn_now().unwrap()).collect();
        assert!(line.turn_now().is_none());
        patience::limited(SHORT, async {
            let began = Instant::now();
            assert_eq!(line.turn().await.unwrap_err(), NoLanding::Late);
            let took = began.elapsed();
            assert!((SHORT..LONG).contains(&took), "{took:?}");
            assert_eq!(patience::left(LONG), Duration::ZERO);
        })
        .await;
        // It moves again.
        let mut turns = turns.into_iter();
        let (next, ()) = tokio::join!(line.turn(), async {
            sleep(SHORT).await;
            turns.next().unwrap().run(async {}).await;
        });
        assert!(next.unwrap().was_waited_for());
    }

    #[tokio::test]
    async fn a_load_that_is_late_gives_its_turn_away_and_goes_on() {
        let line = Line::new(SHORT, AT_ONCE);
        let (end, ended) = tokio::sync::oneshot::channel();
        let late = tokio::spawn(line.turn_now().unwrap().run(ended));
        let _others: Vec<_> = (1..AT_ONCE).map(|_| line.turn_now().unwrap()).collect();
        // It is given away when the line has stood for as long.
        let next = loop {
            if let Ok(next) = line.turn().await {
                break next;
            }
        };
        assert_eq!(line.past.late.load(Ordering::SeqCst), 1);
        assert_eq!(next.run(async { 7 }).await, 7);
        end.send(8).unwrap();
        assert_eq!(late.await.unwrap(), Ok(8));
        assert_eq!(line.past.late.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn where_too_many_are_late_nobody_stands_in_line_though_others_are_in_time() {
        let line = Line::new(SHORT, AT_ONCE);
        let turns = || (0..AT_ONCE).map(|_| line.turn_now().unwrap());
        let held: Vec<_> = turns().collect();
        let moving = async || {
            loop {
                let now_us = Clock::uptime_us();
                line.past.moved_us.store(now_us, Ordering::SeqCst);
                sleep(SHORT / 10).await;
            }
        };
        let longer = tokio::time::timeout(4 * SHORT, line.turn());
        tokio::select! {
            () = moving() => {}
            left = longer => assert!(left.is_err(), "it moves: {left:?}"),
        }
        drop(held);
        let late: Vec<_> = turns()
            .map(|turn| tokio::spawn(turn.run(pending::<()>())))
            .collect();
        while line.past.late.load(Ordering::SeqCst) < AT_ONCE {
            sleep(SHORT / 10).await;
        }
        let _held: Vec<_> = turns().collect();
        tokio::select! {
            () = moving() => {}
            left = line.turn() => assert_eq!(left.unwrap_err(), NoLanding::Late),
        }
        for late in late {
            late.abort();
        }
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_takes_nobody_more() {
        let line = Line::new(LONG, AT_ONCE);
        let _turns: Vec<_> = (0..AT_ONCE).map(|_| line.turn_now().unwrap()).collect();
        let _waiting = line
            .waiting
            .try_acquire_many(u32::try_from(WAITING_MAX).unwrap());
        assert_eq!(line.turn().await.unwrap_err(), NoLanding::Full);
    }
}

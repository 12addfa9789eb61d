//! How long a request waits for what others have to bring: all of its waits together.
//!
//! A request may have to ask a database or a Redis for several things, one after the other, and each of
//! them may be slow. Whoever sent it is promised an answer within one bound whatever is wrong with them, so
//! its waits share a budget, from which each takes what it took; those at the same time count once, but what
//! lines stood still is taken of each. To stand
//! in a [line](crate::cache::line) that moves is no such wait: nothing is wrong then, and that has a bound of
//! its own. Whatever runs within
//! [`limited`] is held to it without being handed it. It costs nothing while nothing is waited for, and
//! does not reach into the tasks that a request starts: those go on when nobody waits any more.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::task::futures::TaskLocalFuture;

use crate::clock::Clock;

tokio::task_local! {
    static BUDGET: Budget;
}

/// All waits of a validation, so that no fault makes its answer take more than 200 ms.
pub const OF_VALIDATION: Duration = Duration::from_millis(150);

/// All waits for who it is that asks, of a request that is answered within two seconds.
pub const OF_OTHERS: Duration = Duration::from_millis(1_500);

/// What [`spend`] has beside that.
const FOR_SPENDING_US: i64 = 40_000;

/// It takes longer than is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it takes longer than is waited for")]
pub struct OutOfPatience;

/// What one request has left.
#[derive(Debug)]
pub struct Budget {
    left_us: Cell<i64>,
    waits: Cell<u32>,
    /// Since when something is waited for; 0 if nothing was so far.
    since_us: Cell<u64>,
}

/// A wait that takes from the budget, until this is dropped.
struct Wait {
    left_us: i64,
}

/// Runs a request all of whose waits together take no longer than this.
pub fn limited<F: Future>(waits_max: Duration, request: F) -> TaskLocalFuture<Budget, F> {
    BUDGET.scope(Budget::new(waits_max), request)
}

/// What `future` brings within `wait_max`, and within what the request has left; what is there at once is
/// always taken.
///
/// # Errors
/// [`OutOfPatience`]
pub async fn wait<F: Future>(wait_max: Duration, future: F) -> Result<F::Output, OutOfPatience> {
    let wait = Wait::begin();
    let left = wait.as_ref().map(|wait| wait.left(0));
    within(left.map_or(wait_max, |left| left.min(wait_max)), future).await
}

/// As [`wait`], for the shared counters that a decision is charged to: they have something of their own when
/// the rest is used up, for all of these waits together. A request that has waited for nothing so far leaves
/// them their own limit.
///
/// # Errors
/// [`OutOfPatience`]
pub async fn spend<F: Future>(future: F) -> Result<F::Output, OutOfPatience> {
    let mut future = pin!(future);
    // No clock is read for what is there at once.
    let at_once = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    if let Poll::Ready(done) = at_once {
        return Ok(done);
    }
    let has_waited = BUDGET.try_with(|budget| budget.since_us.get() > 0);
    let wait = Wait::begin();
    match &wait {
        Some(wait) if has_waited == Ok(true) => within(wait.left(FOR_SPENDING_US), future).await,
        Some(_) | None => Ok(future.await),
    }
}

/// How long may be waited in another way than by [`wait`]: at most `wait_max`. What is, is to be
/// [taken](take).
pub fn left(wait_max: Duration) -> Duration {
    Wait::begin().map_or(wait_max, |wait| wait.left(0).min(wait_max))
}

/// Takes what was waited for in another way, also that at the same time as something else.
pub fn take(waited: Duration) {
    let waited_us = i64::try_from(waited.as_micros()).unwrap_or(i64::MAX);
    // Outside of any request there is nothing to take from.
    let _nobody = BUDGET.try_with(|budget| budget.take(waited_us));
}

async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, OutOfPatience> {
    let done = tokio::time::timeout(limit, future).await;
    done.map_err(|_elapsed| OutOfPatience)
}

impl Budget {
    fn new(waits_max: Duration) -> Self {
        Self {
            left_us: Cell::new(i64::try_from(waits_max.as_micros()).unwrap_or(i64::MAX)),
            waits: Cell::new(0),
            since_us: Cell::new(0),
        }
    }

    fn begin(&self, now_us: u64) -> Wait {
        if self.waits.get() == 0 {
            self.since_us.set(now_us);
        }
        self.waits.set(self.waits.get().saturating_add(1));
        Wait {
            left_us: self.left_us.get().saturating_sub(self.waited_us(now_us)),
        }
    }

    fn end(&self, now_us: u64) {
        self.waits.set(self.waits.get().saturating_sub(1));
        if self.waits.get() == 0 {
            self.take(self.waited_us(now_us));
        }
    }

    fn waited_us(&self, now_us: u64) -> i64 {
        let waited_us = now_us.saturating_sub(self.since_us.get());
        i64::try_from(waited_us).unwrap_or(i64::MAX)
    }

    fn take(&self, waited_us: i64) {
        self.left_us
            .set(self.left_us.get().saturating_sub(waited_us));
    }
}

impl Wait {
    /// `None` outside of any request.
    fn begin() -> Option<Self> {
        BUDGET
            .try_with(|budget| budget.begin(Clock::uptime_us()))
            .ok()
    }

    fn left(&self, more_us: i64) -> Duration {
        let left_us = self.left_us.saturating_add(more_us);
        Duration::from_micros(u64::try_from(left_us).unwrap_or(0))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        // A request that is given up takes its budget with it.
        let _gone = BUDGET.try_with(|budget| budget.end(Clock::uptime_us()));
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::future::join3;
    use tokio::time::{Instant, sleep};

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test]
    async fn waits_one_after_the_other_share_what_there_is() {
        limited(ms(100), async {
            let began = Instant::now();
            for _ in 0..3 {
                assert_eq!(wait(LONG, pending::<()>()).await, Err(OutOfPatience));
            }
            let took = began.elapsed();
            assert!(took >= ms(100), "{took:?}");
            assert_eq!(wait(LONG, ready(7)).await, Ok(7), "what is there is taken");
            assert_eq!(spend(ready(7)).await, Ok(7));
            assert_eq!(spend(pending::<()>()).await, Err(OutOfPatience));
            assert_eq!(spend(ready(7)).await, Ok(7));
        })
        .await;
    }

    #[test]
    fn waits_at_the_same_time_count_once_and_those_that_overlap_as_one() {
        let budget = Budget::new(ms(100));
        let left = |wait: &Wait| wait.left(0);
        // Ended by hand, since it is no request's.
        let begin = |now_us| budget.begin(now_us);
        assert_eq!(left(&begin(1_000)), ms(100));
        assert_eq!(left(&begin(11_000)), ms(90));
        budget.end(21_000);
        assert_eq!(left(&begin(31_000)), ms(70));
        budget.end(41_000);
        budget.end(51_000);
        // Nothing is waited for meanwhile.
        assert_eq!(left(&begin(1_000_000)), ms(50));
        budget.end(1_100_000);
        let last = begin(2_000_000);
        assert_eq!((left(&last), last.left(60_000)), (ms(0), ms(10)));
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_is_taken_and_a_task_or_an_inner_request_has_its_own() {
        limited(ms(60), async {
            let waits = join3(
                wait(LONG, sleep(ms(20))),
                wait(LONG, sleep(ms(20))),
                wait(ms(5), pending::<()>()),
            );
            let (first, second, third) = waits.await;
            assert_eq!((first, second, third), (Ok(()), Ok(()), Err(OutOfPatience)));
            let task = tokio::spawn(async { wait(ms(200), sleep(ms(100))).await });
            let inner = limited(ms(200), wait(LONG, sleep(ms(100))));
            assert_eq!((task.await.unwrap(), inner.await), (Ok(()), Ok(())));
            take(ms(60));
            assert_eq!(wait(LONG, pending::<()>()).await, Err(OutOfPatience));
            assert_eq!(spend(sleep(ms(100))).await, Err(OutOfPatience));
        })
        .await;
    }

    #[tokio::test]
    async fn who_has_waited_for_nothing_spends_at_leisure() {
        limited(Duration::ZERO, async {
            assert_eq!(spend(sleep(ms(60))).await, Ok(()));
        })
        .await;
        assert_eq!(
            wait(LONG, sleep(ms(10))).await,
            Ok(()),
            "and so does nobody"
        );
    }

    #[tokio::test]
    async fn what_was_spent_first_is_taken_like_any_wait() {
        limited(ms(100), async {
            let began = Instant::now();
            assert_eq!(spend(sleep(ms(70))).await, Ok(()));
            assert_eq!(wait(LONG, pending::<()>()).await, Err(OutOfPatience));
            let took = began.elapsed();
            assert!((ms(100)..ms(150)).contains(&took), "{took:?}");
        })
        .await;
    }
}

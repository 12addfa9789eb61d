//! What time it is to who deletes what is old: a clock that is wrong must not take years of it.
//!
//! 1. It is no later than the database's own clock says ([`Db::bounded_by_clock`](crate::db::Db)): so a node
//!    whose clock is ahead deletes nothing too early where the database is another machine.
//! 2. Time goes on while something is recorded. A time is believed if something was recorded in the weeks
//!    before it, and not in the last of them alone. Where a clock has jumped there is nothing: so for a week
//!    nothing goes, and that is told.
//!
//! Who is silent for so long that nothing speaks for the time keeps what is old until a week after something
//! is recorded again.

use crate::time::{Span, Timestamp};

/// What is younger was recorded by the clock that is in question.
const SETTLED_AFTER: Span = Span::days(7);

/// Nothing for longer than this, before that, is a jump.
const SILENCE_MAX: Span = Span::days(28);

/// Only what was recorded before this speaks for `now`.
pub fn settled_before(now: Timestamp) -> Timestamp {
    now.minus(SETTLED_AFTER)
}

/// Whether `now` may be the time: `newest_settled` is when the newest was recorded of what is older than
/// [`settled_before`]. If nothing is, there is nothing yet that could be lost.
pub fn is_believed(now: Timestamp, newest_settled: Option<Timestamp>) -> bool {
    let silent_since = settled_before(now).minus(SILENCE_MAX);
    newest_settled.is_none_or(|at| at >= silent_since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_believed_when_something_was_recorded_before_it() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        for (days_ago, believed) in [(8, true), (34, true), (36, false), (5 * 365, false)] {
            let at = now.minus(Span::days(days_ago));
            assert_eq!(is_believed(now, Some(at)), believed, "{days_ago}");
        }
        assert!(is_believed(now, None));
        assert!(is_believed(Timestamp::from_millis(0), None));
    }
}

//! Questions that are asked together: those that come while others are being asked wait for each other, and
//! go with the next.
//!
//! Who comes alone is asked for alone, and at once.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, oneshot};

/// Questions of one kind.
#[derive(Debug)]
pub struct Together<Q, A> {
    together_max: usize,
    askings: Semaphore,
    waiting: Mutex<VecDeque<Waiting<Q, A>>>,
}

type Waiting<Q, A> = (Q, oneshot::Sender<A>);

impl<Q, A> Together<Q, A> {
    /// At most `askings_max` are under way at once, each with at most `together_max` questions.
    pub fn new(askings_max: usize, together_max: usize) -> Self {
        Self {
            together_max,
            askings: Semaphore::new(askings_max),
            waiting: Mutex::default(),
        }
    }

    /// What is answered to `question`, which goes to a call of `ask` with those that wait beside it, whoever's
    /// that is: it answers each in its place. `None` if that call was given up, or left it out.
    pub async fn answer<F>(&self, question: Q, ask: impl Fn(Vec<Q>) -> F) -> Option<A>
    where
        F: Future<Output = Vec<A>>,
    {
        let (tell, mut told) = oneshot::channel();
        self.waiting().push_back((question, tell));
        loop {
            let _asking = tokio::select! {
                biased;
                answer = &mut told => return answer.ok(),
                asking = self.askings.acquire() => asking.ok()?,
            };
            let (questions, tells): (Vec<Q>, Vec<_>) = self.next().into_iter().unzip();
            if questions.is_empty() {
                // This one is being asked by another.
                return told.await.ok();
            }
            for (tell, answer) in tells.into_iter().zip(ask(questions).await) {
                // Who gave up does not mind.
                let _gone = tell.send(answer);
            }
        }
    }

    /// Those whose turn it is, without those that nobody waits for any more.
    fn next(&self) -> Vec<Waiting<Q, A>> {
        let mut waiting = self.waiting();
        let count = waiting.len().min(self.together_max);
        let some = waiting.drain(..count);
        some.filter(|(_, tell)| !tell.is_closed()).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting<Q, A>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    type Asked = Mutex<Vec<Vec<u32>>>;

    /// Ten times each, and what was asked together.
    fn tenfold(asked: &Asked) -> impl Fn(Vec<u32>) -> std::future::Ready<Vec<u32>> {
        |questions| {
            let answers = questions.iter().map(|question| question * 10).collect();
            asked.lock().unwrap().push(questions);
            std::future::ready(answers)
        }
    }

    #[tokio::test]
    async fn who_comes_alone_is_asked_for_at_once() {
        let (together, asked) = (Together::new(2, 8), Asked::default());
        assert_eq!(
            together.answer(1, tenfold(&asked)).now_or_never(),
            Some(Some(10))
        );
        assert_eq!(
            together.answer(2, tenfold(&asked)).now_or_never(),
            Some(Some(20))
        );
        assert_eq!(*asked.lock().unwrap(), [[1], [2]]);
    }

    #[tokio::test]
    async fn who_comes_while_others_are_asked_for_goes_with_the_next() {
        let (together, asked) = (Together::new(1, 3), Asked::default());
        let go_on = Notify::new();
        let slowly = async |questions: Vec<u32>| {
            go_on.notified().await;
            tenfold(&asked)(questions).await
        };
        let first = together.answer(0, slowly);
        let others = join_all((1..6).map(|number| together.answer(number, tenfold(&asked))));
        let (first, others, ()) = tokio::join!(first, others, async { go_on.notify_one() });
        assert_eq!(
            (first, others),
            (
                Some(0),
                vec![Some(10), Some(20), Some(30), Some(40), Some(50)]
            )
        );
        assert_eq!(*asked.lock().unwrap(), [vec![0], vec![1, 2, 3], vec![4, 5]]);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nobody_without_an_answer() {
        let (together, asked) = (Together::new(1, 8), Asked::default());
        let mut asking =
            Box::pin(together.answer(0, async |_: Vec<u32>| std::future::pending().await));
        assert!(asking.as_mut().now_or_never().is_none());
        let mut waits = Box::pin(together.answer(1, tenfold(&asked)));
        let mut gives_up = Box::pin(together.answer(2, tenfold(&asked)));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(gives_up.as_mut().now_or_never().is_none());
        drop((asking, gives_up));
        assert_eq!(waits.await, Some(10));
        assert_eq!(*asked.lock().unwrap(), [[1]]);
        // What was asked with one that was given up is told so.
        let mut asking =
            Box::pin(together.answer(3, async |_: Vec<u32>| std::future::pending().await));
        assert!(asking.as_mut().now_or_never().is_none());
        let (waits, other) = (
            together.answer(4, tenfold(&asked)),
            together.answer(5, tenfold(&asked)),
        );
        drop(asking);
        assert_eq!(tokio::join!(waits, other), (Some(40), Some(50)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_each_has_its_own_answer_and_few_are_asked_at_once() {
        let together = Arc::new(Together::new(2, 16));
        let (at_once, most, askings) = <(AtomicUsize, AtomicUsize, AtomicUsize)>::default();
        let counts = Arc::new((at_once, most, askings));
        let tasks = (0..5_000_u32).map(|number| {
            let (together, counts) = (Arc::clone(&together), Arc::clone(&counts));
            tokio::spawn(async move {
                let ask = async |questions: Vec<u32>| {
                    let (at_once, most, askings) = &*counts;
                    assert!(questions.len() <= 16);
                    most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    askings.fetch_add(1, Ordering::SeqCst);
                    questions.into_iter().map(u64::from).collect()
                };
                assert_eq!(together.answer(number, ask).await, Some(u64::from(number)));
            })
        });
        for task in join_all(tasks).await {
            task.unwrap();
        }
        assert!(counts.1.load(Ordering::SeqCst) <= 2);
        assert!(counts.2.load(Ordering::SeqCst) < 5_000);
    }
}

//! Questions that are asked together: those that come while others are being asked wait for each other, and
//! go with the next.
//!
//! Who comes alone is asked for alone, and at once. An asking is a task of its own, so nobody waits for one that
//! is not his. Where many together take long, fewer are asked together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// Questions of one kind.
#[derive(Debug)]
pub struct Together<Q, A> {
    questions: Arc<Questions>,
    quick: Duration,
    turns: Arc<Semaphore>,
    queue: Mutex<Queue<Q, A>>,
}

/// So many go together.
#[derive(Debug)]
struct Questions {
    max: usize,
    now: AtomicUsize,
}

#[derive(Debug)]
struct Queue<Q, A> {
    /// In the order in which they came.
    waiting: VecDeque<Waiting<Q, A>>,
    /// So many have left it.
    left: u64,
}

type Waiting<Q, A> = (Q, oneshot::Sender<A>);

impl<Q: Send + 'static, A: Send + 'static> Together<Q, A> {
    /// Of those that are quick at most `turns` are under way at once, each with at most `questions_max` questions;
    /// one that is not over by then stands in nobody's way.
    pub fn new(turns: usize, questions_max: usize, quick: Duration) -> Self {
        let queue = Queue {
            waiting: VecDeque::new(),
            left: 0,
        };
        Self {
            questions: Arc::new(Questions {
                max: questions_max,
                now: AtomicUsize::new(questions_max),
            }),
            quick,
            turns: Arc::new(Semaphore::new(turns)),
            queue: Mutex::new(queue),
        }
    }

    /// What is answered to `question`, which goes to a call of `ask` with those that wait beside it, whoever's
    /// that is: it answers each in its place. `None` if that call panicked, or left it out.
    pub async fn answer<F>(&self, question: Q, ask: impl Fn(Vec<Q>) -> F) -> Option<A>
    where
        F: Future<Output = Vec<A>> + Send + 'static,
    {
        let (tell, mut told) = oneshot::channel();
        let number = self.queue().push((question, tell));
        let mut is_asked = false;
        while !is_asked {
            let turn = tokio::select! {
                biased;
                answer = &mut told => return answer.ok(),
                turn = Arc::clone(&self.turns).acquire_owned() => turn.ok()?,
            };
            let (some, left) = self.queue().pop(self.questions.now());
            is_asked = number < left;
            let (questions, tells): (Vec<Q>, Vec<_>) = some.into_iter().unzip();
            if questions.is_empty() {
                continue;
            }
            let (count, quick) = (questions.len(), self.quick);
            let (asking, together) = (ask(questions), Arc::clone(&self.questions));
            tokio::spawn(async move {
                let mut asking = Box::pin(asking);
                let in_time = timeout(quick, &mut asking).await;
                together.learn(count, in_time.is_ok());
                let answers = match in_time {
                    Ok(answers) => answers,
                    Err(_elapsed) => {
                        drop(turn);
                        asking.await
                    }
                };
                for (tell, answer) in tells.into_iter().zip(answers) {
                    // Who gave up does not mind.
                    let _gone = tell.send(answer);
                }
            });
        }
        told.await.ok()
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Q, A>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Questions {
    fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// Half as many where several were not quick, twice as many where as many as there may be now were.
    fn learn(&self, count: usize, were_quick: bool) {
        let next = if were_quick {
            count.saturating_mul(2).max(self.now()).min(self.max)
        } else if count > 1 {
            self.now().min(count.div_ceil(2))
        } else {
            // It is not for the others that one alone takes long.
            return;
        };
        self.now.store(next, Ordering::Relaxed);
    }
}

impl<Q, A> Queue<Q, A> {
    /// The number of the one that came, from 0 on.
    fn push(&mut self, waiting: Waiting<Q, A>) -> u64 {
        let number = self.left.saturating_add(self.waiting.len() as u64);
        self.waiting.push_back(waiting);
        number
    }

    /// The next of them, at most `max` and without those that nobody waits for any more, and how many have left
    /// by then.
    fn pop(&mut self, max: usize) -> (Vec<Waiting<Q, A>>, u64) {
        let mut some = Vec::with_capacity(self.waiting.len().min(max));
        while some.len() < max
            && let Some(next) = self.waiting.pop_front()
        {
            self.left = self.left.saturating_add(1);
            if !next.1.is_closed() {
                some.push(next);
            }
        }
        (some, self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use futures_util::future::{join_all, pending};
    use tokio::task::yield_now;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    type Asked = Arc<Mutex<Vec<Vec<u32>>>>;

    /// Ten times each, and what was asked together.
    fn tenfold(asked: &Asked) -> impl Fn(Vec<u32>) -> std::future::Ready<Vec<u32>> {
        |questions| {
            let answers = questions.iter().map(|question| question * 10).collect();
            asked.lock().unwrap().push(questions);
            std::future::ready(answers)
        }
    }

    #[tokio::test]
    async fn who_comes_alone_is_asked_for_alone() {
        let (together, asked) = (Together::new(2, 8, LONG), Asked::default());
        assert_eq!(together.answer(1, tenfold(&asked)).await, Some(10));
        assert_eq!(together.answer(2, tenfold(&asked)).await, Some(20));
        assert_eq!(*asked.lock().unwrap(), [[1], [2]]);
    }

    #[tokio::test]
    async fn who_comes_while_others_are_asked_for_goes_with_the_next() {
        let (together, asked) = (Together::new(1, 3, LONG), Asked::default());
        let answers = (0..6).map(|number| together.answer(number, tenfold(&asked)));
        let answers: Vec<_> = join_all(answers).await.into_iter().flatten().collect();
        assert_eq!(answers, [0, 10, 20, 30, 40, 50]);
        assert_eq!(*asked.lock().unwrap(), [vec![0], vec![1, 2, 3], vec![4, 5]]);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nobody_without_an_answer() {
        let (together, asked) = (Together::new(1, 2, LONG), Asked::default());
        let mut first = Box::pin(together.answer(0, tenfold(&asked)));
        let mut gives_up =
            [1, 2, 3].map(|number| Box::pin(together.answer(number, tenfold(&asked))));
        let mut waits = Box::pin(together.answer(4, tenfold(&asked)));
        assert!(first.as_mut().now_or_never().is_none());
        for one in &mut gives_up {
            assert!(one.as_mut().now_or_never().is_none());
        }
        assert!(waits.as_mut().now_or_never().is_none());
        // Also of those that the first one's task asks for.
        drop((first, gives_up));
        assert_eq!(waits.await, Some(40));
        assert_eq!(*asked.lock().unwrap(), [[0], [4]]);
    }

    #[tokio::test]
    async fn who_was_asked_for_does_not_wait_for_others() {
        let (together, asked) = (Together::new(1, 1, LONG), Asked::default());
        let mut first = Box::pin(together.answer(1, tenfold(&asked)));
        assert!(first.as_mut().now_or_never().is_none());
        let mut other = Box::pin(together.answer(2, |_| pending::<Vec<u32>>()));
        assert!(other.as_mut().now_or_never().is_none());
        assert_eq!(first.await, Some(10));
        yield_now().await;
        assert!(other.as_mut().now_or_never().is_none());
    }

    #[tokio::test]
    async fn an_asking_that_is_not_quick_stands_in_nobody_s_way() {
        let (together, asked) = (
            Together::new(1, 8, Duration::from_millis(20)),
            Asked::default(),
        );
        let (go_on, gone_on) = oneshot::channel();
        let gone_on = Mutex::new(Some(gone_on));
        let mut slow = Box::pin(together.answer(1, |questions: Vec<u32>| {
            let gone_on = gone_on.lock().unwrap().take().unwrap();
            async move {
                gone_on.await.unwrap();
                questions
            }
        }));
        assert!(slow.as_mut().now_or_never().is_none());
        assert_eq!(together.answer(2, tenfold(&asked)).await, Some(20));
        go_on.send(()).unwrap();
        assert_eq!(slow.await, Some(1));
    }

    #[test]
    fn so_many_go_together_as_are_quick() {
        let questions = Questions {
            max: 32,
            now: AtomicUsize::new(32),
        };
        let learned = [
            (32, false),
            (16, false),
            (8, true),
            (16, true),
            (1, true),
            (32, true),
        ]
        .map(|(count, were_quick)| {
            questions.learn(count, were_quick);
            questions.now()
        });
        assert_eq!(learned, [16, 8, 16, 32, 32, 32]);
        for _ in 0..10 {
            questions.learn(questions.now(), false);
        }
        assert_eq!(questions.now(), 1);
        for _ in 0..5 {
            questions.learn(questions.now(), true);
        }
        assert_eq!(questions.now(), 32);
    }

    #[tokio::test]
    async fn what_a_panic_leaves_is_told_and_goes_on() {
        let (together, asked) = (Together::new(1, 8, LONG), Asked::default());
        let none = together.answer(1, async |_: Vec<u32>| panic!("as it happens"));
        assert_eq!(none.await, None::<u32>);
        assert_eq!(together.answer(2, tenfold(&asked)).await, Some(20));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_each_has_its_own_answer_and_few_are_asked_at_once() {
        let together = Arc::new(Together::new(2, 16, LONG));
        let (at_once, most, askings) = <(AtomicUsize, AtomicUsize, AtomicUsize)>::default();
        let counts = Arc::new((at_once, most, askings));
        let tasks = (0..5_000_u32).map(|number| {
            let (together, counts) = (Arc::clone(&together), Arc::clone(&counts));
            tokio::spawn(async move {
                let ask = |questions: Vec<u32>| {
                    let counts = Arc::clone(&counts);
                    async move {
                        let (at_once, most, askings) = &*counts;
                        assert!(questions.len() <= 16);
                        most.fetch_max(
                            at_once.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                        yield_now().await;
                        at_once.fetch_sub(1, Ordering::SeqCst);
                        askings.fetch_add(1, Ordering::SeqCst);
                        questions.into_iter().map(u64::from).collect()
                    }
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

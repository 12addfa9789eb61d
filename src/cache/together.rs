//! Questions that are asked together: those that come while others are being asked wait for each other, and
//! go with the next.
//!
//! Who comes alone is asked for alone, and at once. An asking is a task of its own, which begins the next one
//! when it is over: neither stands behind what else those who wait have to do. Where many together take long,
//! fewer are asked together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Questions of one kind. Cheap to clone.
pub struct Together<Q, A>(Arc<Inner<Q, A>>);

/// How they are asked.
pub struct Asking<Q, A> {
    /// Answers each question in its place.
    pub ask: Box<dyn Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send + Sync>,
    /// Where that runs.
    pub runtime: Handle,
    /// So many run at once while they are quick.
    pub askings_max: usize,
    /// So many questions go with one.
    pub questions_max: usize,
    /// One that takes longer stands in nobody's way.
    pub quick: Duration,
}

struct Inner<Q, A> {
    asking: Asking<Q, A>,
    queue: Mutex<Queue<Q, A>>,
}

struct Queue<Q, A> {
    /// In the order in which they came.
    waiting: VecDeque<Waiting<Q, A>>,
    /// So many go together now.
    together: usize,
    /// So many places are taken.
    places: usize,
}

type Waiting<Q, A> = (Q, oneshot::Sender<A>);

/// Of one asking. When it is free, it is for those who wait.
struct Place<Q: Send + 'static, A: Send + 'static>(Arc<Inner<Q, A>>);

impl<Q: Send + 'static, A: Send + 'static> Together<Q, A> {
    pub fn new(asking: Asking<Q, A>) -> Self {
        let queue = Mutex::new(Queue {
            waiting: VecDeque::new(),
            together: asking.questions_max,
            places: 0,
        });
        Self(Arc::new(Inner { asking, queue }))
    }

    /// What is answered to `question`. `None` if the asking panicked, or left it out.
    pub async fn answer(&self, question: Q) -> Option<A> {
        let (tell, told) = oneshot::channel();
        let has_place = {
            let mut queue = self.0.queue();
            queue.waiting.push_back((question, tell));
            let has_place = queue.places < self.0.asking.askings_max;
            queue.places += usize::from(has_place);
            has_place
        };
        if has_place {
            self.0.use_place();
        }
        told.await.ok()
    }
}

impl<Q, A> Clone for Together<Q, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q, A> Inner<Q, A> {
    fn queue(&self) -> MutexGuard<'_, Queue<Q, A>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q: Send + 'static, A: Send + 'static> Inner<Q, A> {
    /// Asks for those who wait, on a place that is taken; it is given back if there are none.
    fn use_place(self: &Arc<Self>) {
        let next = {
            let mut queue = self.queue();
            let next = queue.pop();
            if next.is_empty() {
                queue.places = queue.places.saturating_sub(1);
            }
            next
        };
        if !next.is_empty() {
            let place = Place(Arc::clone(self));
            // A runtime that has ended drops it at once, and with it those questions: each time fewer are left.
            self.asking.runtime.spawn(place.ask(next));
        }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Place<Q, A> {
    async fn ask(self, some: Vec<Waiting<Q, A>>) {
        let count = some.len();
        let (questions, tells): (Vec<Q>, Vec<_>) = some.into_iter().unzip();
        let (mut answers, quick) = ((self.0.asking.ask)(questions), self.0.asking.quick);
        let in_time = timeout(quick, &mut answers).await;
        let questions_max = self.0.asking.questions_max;
        self.0.queue().learn(count, in_time.is_ok(), questions_max);
        drop(self);
        let answers = match in_time {
            Ok(answers) => answers,
            Err(_elapsed) => answers.await,
        };
        for (tell, answer) in tells.into_iter().zip(answers) {
            // Who gave up does not mind.
            let _gone = tell.send(answer);
        }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Drop for Place<Q, A> {
    /// Also where an asking panics.
    fn drop(&mut self) {
        self.0.use_place();
    }
}

impl<Q, A> Queue<Q, A> {
    /// The next of them that go together, without those that nobody waits for any more.
    fn pop(&mut self) -> Vec<Waiting<Q, A>> {
        let mut some = Vec::with_capacity(self.waiting.len().min(self.together));
        while some.len() < self.together
            && let Some(next) = self.waiting.pop_front()
        {
            if !next.1.is_closed() {
                some.push(next);
            }
        }
        some
    }

    /// Half as many where several were not quick, twice as many where as many as there may be now were. Where even
    /// one alone was not, it is not for their number: then all of them may be asked for what few cost too.
    fn learn(&mut self, count: usize, were_quick: bool, max: usize) {
        self.together = match (were_quick, count) {
            (true, _) => count.saturating_mul(2).max(self.together).min(max),
            (false, 0..=1) => max,
            (false, _) => self.together.min(count.div_ceil(2)),
        };
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

    /// No answer ever comes to that.
    const NO_ANSWER: u32 = 13;

    /// It panics at that.
    const PANICS: u32 = 666;

    fn together<F>(
        (askings_max, questions_max, quick): (usize, usize, Duration),
        ask: impl Fn(Vec<u32>) -> F + Send + Sync + 'static,
    ) -> Together<u32, u32>
    where
        F: Future<Output = Vec<u32>> + Send + 'static,
    {
        Together::new(Asking {
            ask: Box::new(move |questions| ask(questions).boxed()),
            runtime: Handle::current(),
            askings_max,
            questions_max,
            quick,
        })
    }

    /// Ten times each, and what was asked together.
    fn tenfold(how: (usize, usize, Duration)) -> (Together<u32, u32>, Asked) {
        let asked = Asked::default();
        let noted = Arc::clone(&asked);
        let ask = move |questions: Vec<u32>| {
            noted.lock().unwrap().push(questions.clone());
            async move {
                assert!(!questions.contains(&PANICS));
                if questions.contains(&NO_ANSWER) {
                    pending::<()>().await;
                }
                questions.iter().map(|question| question * 10).collect()
            }
        };
        (together(how, ask), asked)
    }

    #[tokio::test]
    async fn who_comes_alone_is_asked_for_alone() {
        let (together, asked) = tenfold((2, 8, LONG));
        assert_eq!(together.answer(1).await, Some(10));
        assert_eq!(together.answer(2).await, Some(20));
        assert_eq!(*asked.lock().unwrap(), [[1], [2]]);
    }

    #[tokio::test]
    async fn who_comes_while_others_are_asked_for_goes_with_the_next() {
        let (together, asked) = tenfold((1, 3, LONG));
        let answers = (0..6).map(|number| together.answer(number));
        let answers: Vec<_> = join_all(answers).await.into_iter().flatten().collect();
        assert_eq!(answers, [0, 10, 20, 30, 40, 50]);
        assert_eq!(*asked.lock().unwrap(), [vec![0], vec![1, 2, 3], vec![4, 5]]);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nobody_without_an_answer() {
        let (together, asked) = tenfold((1, 2, LONG));
        let mut first = Box::pin(together.answer(0));
        let mut gives_up = [1, 2, 3].map(|number| Box::pin(together.answer(number)));
        let mut waits = Box::pin(together.answer(4));
        assert!(first.as_mut().now_or_never().is_none());
        for one in &mut gives_up {
            assert!(one.as_mut().now_or_never().is_none());
        }
        assert!(waits.as_mut().now_or_never().is_none());
        drop((first, gives_up));
        assert_eq!(waits.await, Some(40));
        assert_eq!(*asked.lock().unwrap(), [[0], [4]]);
    }

    #[tokio::test]
    async fn who_was_asked_for_does_not_wait_for_others() {
        let (together, _) = tenfold((1, 1, LONG));
        let mut first = Box::pin(together.answer(1));
        assert!(first.as_mut().now_or_never().is_none());
        let mut other = Box::pin(together.answer(NO_ANSWER));
        assert!(other.as_mut().now_or_never().is_none());
        assert_eq!(first.await, Some(10));
        yield_now().await;
        assert!(other.as_mut().now_or_never().is_none());
    }

    #[tokio::test]
    async fn an_asking_that_is_not_quick_stands_in_nobody_s_way() {
        let (go_on, gone_on) = oneshot::channel();
        let gone_on = Mutex::new(Some(gone_on));
        let ask = move |questions: Vec<u32>| {
            let gone_on = gone_on.lock().unwrap().take();
            async move {
                if let Some(gone_on) = gone_on {
                    gone_on.await.unwrap();
                }
                questions
            }
        };
        let together = together((1, 8, Duration::from_millis(20)), ask);
        let mut slow = Box::pin(together.answer(1));
        assert!(slow.as_mut().now_or_never().is_none());
        assert_eq!(together.answer(2).await, Some(2));
        assert!(slow.as_mut().now_or_never().is_none());
        go_on.send(()).unwrap();
        assert_eq!(slow.await, Some(1));
    }

    #[test]
    fn so_many_go_together_as_are_quick() {
        let mut queue = Queue::<(), ()> {
            waiting: VecDeque::new(),
            together: 32,
            places: 0,
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
            queue.learn(count, were_quick, 32);
            queue.together
        });
        assert_eq!(learned, [16, 8, 16, 32, 32, 32]);
        let slow_alone = [32, 16, 8, 4, 2, 1].map(|count| {
            queue.learn(count, false, 32);
            queue.together
        });
        assert_eq!(slow_alone, [16, 8, 4, 2, 1, 32]);
        for _ in 0..5 {
            queue.learn(queue.together, false, 32);
        }
        assert_eq!(queue.together, 1);
        for _ in 0..5 {
            queue.learn(queue.together, true, 32);
        }
        assert_eq!(queue.together, 32);
    }

    #[tokio::test]
    async fn what_a_panic_leaves_is_told_and_goes_on() {
        let (together, asked) = tenfold((1, 8, LONG));
        let (none, behind) = tokio::join!(together.answer(PANICS), together.answer(1));
        assert_eq!((none, behind), (None, Some(10)));
        assert_eq!(together.answer(2).await, Some(20));
        assert_eq!(*asked.lock().unwrap(), [[PANICS], [1], [2]]);
    }

    #[test]
    fn who_asks_where_nothing_runs_any_more_is_told_so() {
        let other = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let together = {
            let _there = other.enter();
            tenfold((1, 1, LONG)).0
        };
        let mut waits = [NO_ANSWER, 1, 2].map(|number| Box::pin(together.answer(number)));
        for one in &mut waits {
            assert!(one.as_mut().now_or_never().is_none());
        }
        drop(other);
        for one in &mut waits {
            assert_eq!(one.as_mut().now_or_never(), Some(None));
        }
        assert_eq!(together.answer(3).now_or_never(), Some(None));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_each_has_its_own_answer_and_few_are_asked_at_once() {
        let (at_once, most, askings) = <(AtomicUsize, AtomicUsize, AtomicUsize)>::default();
        let counts = Arc::new((at_once, most, askings));
        let counted = Arc::clone(&counts);
        let together = together((2, 16, LONG), move |questions: Vec<u32>| {
            let counts = Arc::clone(&counted);
            async move {
                let (at_once, most, askings) = &*counts;
                assert!(questions.len() <= 16);
                most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                yield_now().await;
                at_once.fetch_sub(1, Ordering::SeqCst);
                askings.fetch_add(1, Ordering::SeqCst);
                questions.into_iter().map(|question| question + 1).collect()
            }
        });
        let tasks = (0..5_000_u32).map(|number| {
            let together = together.clone();
            tokio::spawn(async move {
                assert_eq!(together.answer(number).await, Some(number + 1));
            })
        });
        for task in join_all(tasks).await {
            task.unwrap();
        }
        assert!(counts.1.load(Ordering::SeqCst) <= 2);
        assert!(counts.2.load(Ordering::SeqCst) < 5_000);
        assert_eq!(together.0.queue().places, 0);
    }
}

//! The order of refusals: 413 and 415 before 401 and 403, and those before any other 400.
//!
//! actix asks all extractors of a handler at once. So the one that authenticates closes a gate when
//! it is made, and those that read the body, the query and headers wait behind it. What can be told
//! from the head alone (413, 415) they leave at the gate, where the one that authenticates finds it.
//! A handler without a caller has no closed gate, and nobody waits.
//!
//! At the gate it is also known whether anybody reads the query. If nobody does there must be none:
//! a `?dry_run=true` that means nothing here must not look as if it did.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_web::{HttpMessage as _, HttpRequest};

use super::page::NoFilter;
use super::problem::Problem;
use super::query::Params;

/// One for each request.
#[derive(Default)]
pub struct Gate {
    closed: Cell<bool>,
    /// Whether an extractor of the handler reads the query.
    query_is_read: Cell<bool>,
    refusal: RefCell<Option<Problem>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    pub(crate) fn of(req: &HttpRequest) -> Rc<Self> {
        if let Some(gate) = req.extensions().get::<Rc<Self>>() {
            return Rc::clone(gate);
        }
        let gate = Rc::new(Self::default());
        req.extensions_mut().insert(Rc::clone(&gate));
        gate
    }

    /// For `FromRequest::from_request` of the extractor that authenticates. Nobody passes until
    /// what is returned is opened or dropped.
    pub fn close(req: &HttpRequest) -> Closed {
        let gate = Self::of(req);
        gate.closed.set(true);
        Closed(gate)
    }

    /// Leaves a refusal that comes before authentication.
    pub(crate) fn refuse(&self, problem: Problem) {
        self.refusal.borrow_mut().get_or_insert(problem);
    }

    /// For `FromRequest::from_request` of an extractor that reads the query.
    pub(crate) fn read_query(&self) {
        self.query_is_read.set(true);
    }

    /// Waits until the caller is known and permitted.
    pub(crate) async fn pass(&self) -> Result<(), Problem> {
        poll_fn(|cx| self.poll_open(cx)).await;
        self.refusal.borrow_mut().take().map_or(Ok(()), Err)
    }

    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if self.closed.get() {
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

/// A closed gate, in the hands of the extractor that authenticates.
pub struct Closed(Rc<Gate>);

impl Closed {
    /// What was refused by the head alone: to be returned before the credential is looked at.
    pub fn refusal(&self) -> Result<(), Problem> {
        self.0.refusal.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// Lets the others pass.
    ///
    /// # Errors
    /// 400 for a query that none of them reads.
    pub fn open(self, query: &str) -> Result<(), Problem> {
        if self.0.query_is_read.get() {
            return Ok(());
        }
        Params::parse(query)
            .and_then(|params| params.deserialize())
            .map(|NoFilter {}| ())
            .map_err(|violation| Problem::invalid(vec![violation]))
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.set(false);
        for waker in self.0.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

/// A result that is known already but told only behind the gate.
pub struct Gated<T> {
    gate: Rc<Gate>,
    result: Option<Result<T, Problem>>,
}

impl<T> Gated<T> {
    pub(crate) fn new(req: &HttpRequest, result: Result<T, Problem>) -> Self {
        Self {
            gate: Gate::of(req),
            result: Some(result),
        }
    }
}

impl<T: Unpin> Future for Gated<T> {
    type Output = Result<T, Problem>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.gate.poll_open(cx).is_pending() {
            return Poll::Pending;
        }
        // Taken once: a future is not polled again after it was ready.
        self.result.take().map_or(Poll::Pending, Poll::Ready)
    }
}

//! Lists: newest first, by (time, id), a bounded page at a time.

use serde::Serialize;

use crate::time::Timestamp;

/// The most items a page has.
pub const LIMIT_MAX: u32 = 200;

pub const LIMIT_DEFAULT: u32 = 50;

/// Where a page ends: the next one starts behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub at: Timestamp,
    pub id: String,
}

/// Which page is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// 1 to [`LIMIT_MAX`].
    pub limit: u32,
    pub after: Option<Position>,
}

/// A page of items and where the next one starts, if there is one.
#[derive(Clone, Debug, Serialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(skip)]
    pub next: Option<Position>,
}

impl PageRequest {
    /// How many rows to load: one more than is shown tells whether there is a next page.
    pub fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// Cuts the rows that [`PageRequest::fetch`] loaded to a page.
    pub fn page<T>(&self, mut rows: Vec<T>, position: impl Fn(&T) -> Position) -> Page<T> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = if more {
            rows.last().map(position)
        } else {
            None
        };
        Page { items: rows, next }
    }
}

impl<T> Page<T> {
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(f).collect(),
            next: self.next,
        }
    }
}

/// How many of the rows that have these sizes, in their order, go within `bytes_max`.
pub fn fitting(sizes: &[i64], bytes_max: i64) -> usize {
    let mut left = bytes_max;
    let fit = sizes.iter().take_while(|size| {
        left = left.saturating_sub(**size);
        left >= 0
    });
    fit.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_up_to_the_first_that_does_not() {
        for (sizes, bytes_max, fit) in [
            (&[][..], 10, 0),
            (&[4, 6], 10, 2),
            (&[4, 7, 1], 10, 1),
            (&[11, 1], 10, 0),
            (&[i64::MAX, 1], i64::MAX, 1),
        ] {
            assert_eq!(fitting(sizes, bytes_max), fit, "{sizes:?}");
        }
    }
}

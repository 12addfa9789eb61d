//! What strangers, callers and typos try, and what each of it comes to. A row number in a comment
//! names the threat in the list that the tests were made from.

mod edge;

use serde_json::json;

use crate::support::{Client, Home, both};

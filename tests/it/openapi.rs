//! The API document that is committed is the one that the program prints.

use crate::cli::{keystead, stdout};

#[test]
fn the_committed_document_is_the_one_that_is_printed() {
    let output = keystead(std::path::Path::new("."), &["openapi"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (printed, committed) = (stdout(&output), include_str!("../../openapi/keystead.json"));
    let first = printed
        .lines()
        .zip(committed.lines())
        .enumerate()
        .find(|(_, (printed, committed))| printed != committed);
    assert!(
        printed == committed,
        "the API document is out of date, first in line {first:?}; renew it with:\n\
         cargo run -- openapi > openapi/keystead.json"
    );
}

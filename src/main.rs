//! The `keystead` command: parse, run, exit code.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Things of one size lie side by side, whichever thread made them, and what is free again goes back to the
/// system after some seconds. That of SQLite too: it takes the place of `malloc`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    keystead::cli::run()
}

//! The `keystead` command: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    keystead::cli::run()
}

//! The `varv` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    varv::cli::main()
}

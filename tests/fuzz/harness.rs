//! Gives libFuzzer's bytes to the target that the binary is named after.
#![no_main]

mod targets;

use libfuzzer_sys::fuzz_target;
use targets::TARGETS;

fuzz_target!(|bytes: &[u8]| {
    for target in TARGETS.iter().filter(|target| target.name == env!("CARGO_BIN_NAME")) {
        (target.run)(bytes);
    }
});

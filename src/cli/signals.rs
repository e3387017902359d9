//! The first SIGINT, SIGTERM or SIGHUP asks to stop; a second one ends the process.

use std::{fs, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::observe::Stop;

/// Asked to stop by a signal; given to every operation.
pub static STOP: Stop = Stop::new();

/// Begins to listen. Where that is not possible, signals end the process as usual.
pub fn listen() {
    let mut wanted = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let Ok(mut signals) = Signals::new(wanted) else { return };
    let _ = thread::Builder::new().name("signals".into()).spawn(move || {
        let mut seen = false;
        for signal in &mut signals {
            if seen {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            STOP.request(signal);
            seen = true;
        }
    });
}

/// Whether whoever started the process wants it to go on when the terminal goes away, as nohup does.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

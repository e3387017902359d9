//! The first SIGINT or SIGTERM asks to stop; a second one ends the process.

use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::observe::Stop;

/// Asked to stop by a signal; given to every operation.
pub static STOP: Stop = Stop::new();

/// Begins to listen. Where that is not possible, signals end the process as usual.
pub fn listen() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
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

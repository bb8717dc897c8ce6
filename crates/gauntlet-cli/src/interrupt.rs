//! Ctrl-C: the first asks, the second insists.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Status;
use crate::output::say;

/// Whether the person wants to stop.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C (and a request to terminate) sets [`STOP`], and the person is told what is done then; a second one ends
/// the program at once.
pub(crate) fn catch(doing: &'static str) {
    let handler = move || {
        if STOP.swap(true, Ordering::SeqCst) {
            exit(Status::Interrupted as i32);
        }
        say(format!("\n{doing}; press Ctrl-C again to stop at once"));
    };
    // It fails only if a handler is there already, which then does the same.
    let _ = ctrlc::set_handler(handler);
}

/// Whether the person wants to stop.
pub(crate) fn asked() -> bool {
    STOP.load(Ordering::SeqCst)
}

//! Ctrl-C: the first asks, the second insists.

use std::io::Read;
use std::process::exit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::failure::Status;
use crate::output::say;

/// Whether the person wants to stop.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// With this variable set, the end of standard input asks to stop as Ctrl-C does. A parent that holds the other end asks by
/// closing it, and also by dying, however suddenly.
pub(crate) const WITH_STDIN: &str = "GAUNTLET_STOP_WITH_STDIN";

/// Signals this close together are one wish: batch systems send one to the shell, which hands it on, and one to every process.
const TOGETHER: Duration = Duration::from_millis(500);

/// From here on Ctrl-C (and a request to terminate) sets [`STOP`], and the person is told what is done then; a second one ends
/// the program at once.
pub(crate) fn catch(doing: &'static str) {
    let first: Mutex<Option<Instant>> = Mutex::new(None);
    let handler = move || {
        let now = Instant::now();
        let Ok(mut first) = first.lock() else {
            return;
        };
        if STOP.swap(true, Ordering::SeqCst) {
            if first.is_some_and(|first| now - first < TOGETHER) {
                return;
            }
            exit(Status::Interrupted as i32);
        }
        *first = Some(now);
        say(format!("\n{doing}; press Ctrl-C again to stop at once"));
    };
    // It fails only if a handler is there already, which then does the same.
    let _ = ctrlc::set_handler(handler);
    if std::env::var_os(WITH_STDIN).is_some() {
        std::thread::spawn(move || {
            let mut byte = [0];
            while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
            if !STOP.swap(true, Ordering::SeqCst) {
                say(format!("\n{doing}"));
            }
        });
    }
}

/// Whether the person wants to stop.
pub(crate) fn asked() -> bool {
    STOP.load(Ordering::SeqCst)
}

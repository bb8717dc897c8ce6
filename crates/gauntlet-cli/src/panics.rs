//! What a person sees when code panics: never a backtrace they did not ask for.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Replaces the panic message by one for people. With `RUST_BACKTRACE` set, the usual one stays.
pub(crate) fn install() {
    let wanted = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // TensorBoard's writer panics where it meets an error; its sink turns that into a note.
        let tensorboard = info
            .location()
            .is_some_and(|place| place.file().contains("tensorboard-rs"));
        if tensorboard || EXPECTED.get() {
            return;
        }
        if wanted {
            usual(info);
        }
        crate::output::say(format!(
            "internal error: {}\n\nhint: this is a bug or a broken driver, not your doing; please report it with the output of \
             the same command under `RUST_BACKTRACE=1`",
            describe(info)
        ));
    }));
}

/// What `work` returns, or the text of its panic; nothing is printed.
///
/// # Errors
/// The first line of the panic's message.
pub(crate) fn expected<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    EXPECTED.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(false);
    result.map_err(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("it panicked");
        text.lines().next().unwrap_or_default().to_owned()
    })
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("a panic");
    // `crate-1.2.3/src/file.rs`, without the folder of the machine that built the program.
    let place = info.location().map_or_else(String::new, |place| {
        let parts: Vec<_> = place.file().rsplitn(4, ['/', '\\']).collect();
        let tail = parts[..parts.len().min(3)].iter().rev().copied();
        format!(" ({}:{})", tail.collect::<Vec<_>>().join("/"), place.line())
    });
    format!("{message}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expected_panic_becomes_its_first_line() {
        assert_eq!(expected(|| 3), Ok(3));
        let number = 7;
        assert_eq!(
            expected(|| panic!("no driver {number}\nand more")),
            Err::<(), _>("no driver 7".to_owned())
        );
    }
}

//! ZIP archives: every entry is read up to a bound.
#![no_main]

use std::io::Cursor;

use gauntlet_formats::zip::Archive;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(mut archive) = Archive::open(Cursor::new(bytes)) {
        for entry in archive.entries().to_vec().iter().take(16) {
            let _ = archive.read(entry, 1 << 20);
            let _ = archive.read_part(entry, 1, 5);
        }
    }
});

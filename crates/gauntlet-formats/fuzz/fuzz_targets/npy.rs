//! NumPy arrays: every value of what is read can be looked at.
#![no_main]

use gauntlet_formats::npy::Array;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(array) = Array::read(bytes) {
        for place in 0..array.len().min(1000) {
            let _ = (array.float(place), array.whole(place));
        }
        let _ = array.strides();
    }
});

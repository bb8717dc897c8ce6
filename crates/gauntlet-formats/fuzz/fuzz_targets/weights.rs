//! Weights files of all kinds: whatever the bytes, an error or tensors, in bounded memory.
#![no_main]

use std::io::Write;

use gauntlet_formats::WeightsFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    if let Ok(mut weights) = WeightsFile::open(file.path()) {
        for name in weights.tensors().keys().cloned().collect::<Vec<_>>() {
            let _ = weights.read(&name);
        }
    }
});

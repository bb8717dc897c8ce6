//! stub
use crate::{DataError, Dataset};
use std::{collections::BTreeMap, path::Path};
/// stub
pub fn load(_: &Path, _: Option<&Path>, _: usize) -> Result<Dataset, DataError> {
    todo!()
}
/// stub
pub fn write_examples(
    _: &Path,
    _: &Dataset,
    _: &BTreeMap<usize, Vec<f32>>,
) -> Result<(), DataError> {
    Ok(())
}
/// stub
pub fn write_pictures(
    _: &Path,
    _: &Dataset,
    _: &BTreeMap<usize, Vec<f32>>,
) -> Result<(), DataError> {
    Ok(())
}

//! One file a command.

mod audit;
mod bench;
mod card;
mod completions;
mod config;
mod data;
mod devices;
mod experiment;
mod export;
mod judge;
mod model;
mod predict;
mod resume;
mod runs;
mod subject;
mod train;

pub(crate) use audit::{Takes, audit};
pub(crate) use bench::{
    BenchGate, BenchModel, BenchObjective, BenchPrecision, bench, gate as bench_gate,
};
pub(crate) use completions::completions;
pub(crate) use config::config;
pub(crate) use data::data;
pub(crate) use devices::devices;
pub(crate) use experiment::experiment;
pub(crate) use model::model;
pub(crate) use predict::predict;
pub(crate) use resume::resume;
pub(crate) use runs::runs;
pub(crate) use subject::Subject;
pub(crate) use train::train;

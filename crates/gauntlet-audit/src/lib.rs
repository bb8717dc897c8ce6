//! What a model withstands: evaluation over a data set, tables, `report.json` and `report.html`.

mod error;
mod evaluation;
mod report;

pub use error::AuditError;
pub use evaluation::{Evaluation, evaluate};
pub use report::{Audit, Curve, RunReport};

//! What a model withstands: evaluation over a data set, tables, `report.json` and `report.html`.

mod error;
mod evaluation;
mod html;
mod plot;
mod report;

pub use error::AuditError;
pub use evaluation::{Evaluation, evaluate, wilson};
pub use report::{AttackResult, Audit, Class, Curve, Data, RunReport, Threat, Twin};

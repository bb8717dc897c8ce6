//! What a model withstands: evaluation over a data set, tables, `report.json` and `report.html`.

mod audit;
mod error;
mod evaluation;
mod html;
mod plot;
mod report;
mod suite;

pub use audit::{
    AttackResult, Audit, Class, Confidence, CorruptionResult, Data, Finding, Threat, Twin,
};
pub use error::AuditError;
pub use evaluation::{Evaluation, evaluate, wilson};
pub use report::{Curve, RunReport};
pub use suite::{Member, Standing, Suite};

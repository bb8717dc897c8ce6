//! What a model withstands: evaluation over a data set, tables, `report.json` and `report.html`.

mod audit;
mod auditor;
mod error;
mod evaluation;
mod html;
mod kept;
mod plot;
mod replay;
mod report;
mod signs;
mod suite;

pub use audit::{
    AttackResult, Audit, Class, Confidence, CorruptionResult, Data, Finding, Threat, Twin,
};
pub use auditor::{Auditor, Found, Stage};
pub use error::AuditError;
pub use evaluation::{Evaluation, evaluate, wilson};
pub use report::{Curve, RunReport};
pub use signs::Signs;
pub use suite::{Example, Member, Standing, Subject, Suite};

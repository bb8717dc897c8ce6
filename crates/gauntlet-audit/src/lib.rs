//! What a model withstands: evaluation over a data set, tables, `report.json` and `report.html`.

mod audit;
mod auditor;
mod error;
mod evaluation;
mod html;
mod kept;
mod outcomes;
mod plan;
mod plot;
mod replay;
mod report;
mod signs;
mod spec;
mod suite;

pub use audit::{
    AttackResult, Audit, Class, Confidence, CorruptionResult, Data, Finding, Threat, Twin,
};
pub use auditor::{Auditor, Found, Stage};
pub use error::AuditError;
pub use evaluation::{Evaluation, evaluate, wilson};
pub use outcomes::write_outcomes;
pub use plan::{AuditPlan, CorruptionPlan, SuiteName, ThreatPlan};
pub use report::{Curve, RunReport};
pub use signs::Signs;
pub use spec::{ApgdLossSpec, AttackSpec, LossSpec, Setting, Surrogate};
pub use suite::{Example, Member, Standing, Subject, Suite};

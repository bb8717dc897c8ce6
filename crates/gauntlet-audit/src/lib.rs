//! What a model withstands: evaluation over a data set, tables, `report.json`, and pages for people.

mod audit;
mod audit_page;
mod classes;
mod diagnosis;
mod error;
mod evaluation;
mod histogram;
mod html;
#[cfg(test)]
mod page_tests;
mod plot;
mod report;
mod run_page;
mod suite;

pub use audit::{
    AttackResult, Audit, Class, Confidence, CorruptionResult, Data, Finding, Threat, Twin,
};
pub use audit_page::{Weak, audit_page};
pub use diagnosis::{diagnoses, diagnosis};
pub use error::AuditError;
pub use evaluation::{Evaluation, evaluate, wilson};
pub use report::{Curve, RunReport};
pub use suite::{Member, Standing, Suite};

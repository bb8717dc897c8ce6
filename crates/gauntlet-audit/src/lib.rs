//! What a model withstands: evaluation over a data set, tables, `report.json`, and pages for people.

mod audit;
mod audit_page;
mod auditor;
mod certify;
mod chart;
mod classes;
mod diagnosis;
mod error;
mod evaluation;
mod histogram;
mod html;
mod kept;
mod kept_corruptions;
mod look;
#[cfg(test)]
mod masking_tests;
mod outcomes;
#[cfg(test)]
mod page_tests;
mod plan;
mod plot;
mod replay;
mod report;
mod run_page;
mod signs;
mod spec;
mod suite;

pub use audit::{
    AttackResult, Audit, Class, Confidence, CorruptionResult, Data, Finding, Threat, Twin,
};
pub use audit_page::{Weak, audit_page};
pub use auditor::{Auditor, Found, Stage};
pub use certify::{AtRadius, Certificate, Certified, Certify, lower_bound, radius};
pub use chart::{Cloud, over_epochs, scatter};
pub use diagnosis::{diagnoses, diagnosis};
pub use error::AuditError;
pub use evaluation::{Evaluation, evaluate, wilson};
pub use kept::file_name;
pub use outcomes::write_outcomes;
pub use plan::{AuditPlan, CorruptionPlan, PlanProblem, SuiteName, ThreatPlan};
pub use report::{Curve, RunReport};
pub use signs::Signs;
pub use spec::{ApgdLossSpec, AttackSpec, Fit, LossSpec, Setting, Surrogate};
pub use suite::{Example, Keep, Member, Standing, Subject, Suite};

//! What stops a command, and the exit status it ends with.

use std::fmt;

use gauntlet_audit::AuditError;
use gauntlet_data::DataError;
use gauntlet_models::ModelError;
use gauntlet_train::TrainError;

/// Exit statuses other programs may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It failed while running.
    Failed = 1,
    /// The request was wrong: arguments, config, data.
    Request = 2,
    /// A model does not withstand what was required.
    Gate = 3,
    /// Interrupted after saving.
    Interrupted = 130,
}

/// A command's end without its result: what to tell, and the exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

impl Failure {
    /// The request was wrong.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self {
            status: Status::Request,
            message: message.into(),
        }
    }

    /// Something failed on the way.
    pub(crate) fn running(message: impl Into<String>) -> Self {
        Self {
            status: Status::Failed,
            message: message.into(),
        }
    }

    /// A gate was not met.
    pub(crate) fn gate(message: impl Into<String>) -> Self {
        Self {
            status: Status::Gate,
            message: message.into(),
        }
    }

    /// Ctrl-C, with what is saved and how to go on.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self {
            status: Status::Interrupted,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Status::Interrupted => f.write_str(&self.message),
            _ => write!(f, "error: {}", self.message),
        }
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Data(error) => error.into(),
            TrainError::Model(error) => error.into(),
            TrainError::Plan(_)
            | TrainError::RunExists { .. }
            | TrainError::NoRun { .. }
            | TrainError::Busy { .. }
            | TrainError::Config { .. }
            | TrainError::Changed { .. }
            | TrainError::Other { .. }
            | TrainError::TooFewExamples { .. } => Self::request(error.to_string()),
            _ => Self::running(error.to_string()),
        }
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::request(error.to_string())
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Write { .. } => Self::running(error.to_string()),
            _ => Self::request(error.to_string()),
        }
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        Self::running(error.to_string())
    }
}

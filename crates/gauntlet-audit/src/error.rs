/// What went wrong while a model was judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// An attack returned an illegal example: a bug in the attack.
    #[error("{attack} left its threat model: {violation}")]
    Violation {
        /// Name of the attack.
        attack: String,
        /// Which sample, and how.
        violation: gauntlet_attacks::Violation,
    },
    /// A report cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

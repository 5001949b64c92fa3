//! Errors as gRPC status codes. containerd translates each code to one of its error kinds and acts on some of them.

use silk_model::Class;
use tonic::{Code, Status};

use crate::SnapshotError;

/// The gRPC code of a kind of trouble.
pub fn code(class: Class) -> Code {
    match class {
        Class::NotFound => Code::NotFound,
        Class::Denied => Code::PermissionDenied,
        Class::Transient => Code::Unavailable,
        Class::Corrupt => Code::DataLoss,
        Class::NoSpace => Code::ResourceExhausted,
        Class::Unsupported => Code::Unimplemented,
        Class::Invalid => Code::InvalidArgument,
        Class::Precondition => Code::FailedPrecondition,
        Class::Exists => Code::AlreadyExists,
        Class::Internal => Code::Internal,
    }
}

/// The code of a pull or a mapping that failed. `NotFound` would make containerd prepare the layer again, three times at once;
/// `AlreadyExists` would mean success; `Unimplemented` would mean that silk has no such call.
fn pull_code(class: Class) -> Code {
    match class {
        Class::NotFound | Class::Unsupported | Class::Exists => Code::FailedPrecondition,
        _ => code(class),
    }
}

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        let code = match &error {
            SnapshotError::Pull(not_ready) | SnapshotError::NotMapped { source: not_ready, .. } => {
                pull_code(not_ready.class)
            }
            _ => code(error.class()),
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NotReady;

    #[test]
    fn a_failed_pull_is_never_taken_for_a_missing_snapshot() {
        for class in [Class::NotFound, Class::Exists, Class::Transient, Class::Corrupt, Class::Denied] {
            let status = Status::from(SnapshotError::Pull(NotReady::new(class, "image x: gone")));
            assert!(!matches!(status.code(), Code::NotFound | Code::AlreadyExists), "{class:?}");
            assert_eq!(status.message(), "image x: gone");
        }
    }
}

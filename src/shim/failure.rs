//! What a call answers when it fails: a code of gRPC's, from which containerd makes its own kinds of errors, and a sentence.

use super::messages::Status;
use crate::error::Error;

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: Code,
    message: String,
}

/// google/rpc/code.proto
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Nothing more is known of it.
    Unknown = 2,
    /// The request makes no sense.
    InvalidArgument = 3,
    /// There is no such container or process, or it has ended.
    NotFound = 5,
    /// It is there already.
    AlreadyExists = 6,
    /// It is not in a state for that.
    FailedPrecondition = 9,
    /// No such call.
    Unimplemented = 12,
    /// There is nobody any more who could do it.
    Unavailable = 14,
}

impl Failure {
    /// A failure in words.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// There is no such container or process.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(Code::NotFound, format!("{}: not found", what.into()))
    }

    /// It is not in a state for that.
    pub fn state(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// As it is answered.
    pub fn status(self) -> Status {
        Status { code: self.code as i32, message: self.message }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        // What the command line says of a container that has ended, engines look for by its kind.
        let code = match error.unhinted().to_string().as_str() {
            "container not running" => Code::NotFound,
            "cannot exec in a stopped container" => Code::FailedPrecondition,
            gone if gone.starts_with("container ") && gone.ends_with(" does not exist") => Code::NotFound,
            _ => Code::Unknown,
        };
        Self { code, message }
    }
}

impl From<prost::DecodeError> for Failure {
    fn from(error: prost::DecodeError) -> Self {
        Self::new(Code::InvalidArgument, format!("cannot read the request: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Id, Store};

    #[test]
    fn what_the_command_line_says_of_a_missing_container_has_its_kind() {
        let missing = Store::new("/nowhere".as_ref()).open(&Id::new("box").unwrap()).unwrap_err();
        let status = Failure::from(missing.clone()).status();
        assert_eq!((status.code, status.message), (Code::NotFound as i32, missing.to_string()));
        assert!(missing.to_string().contains("hint"), "{missing}");
        for (sentence, code) in [
            ("container not running", Code::NotFound),
            ("cannot exec in a stopped container", Code::FailedPrecondition),
            ("a rootfs does not exist", Code::Unknown),
        ] {
            assert_eq!(Failure::from(Error::plain(sentence)).status().code, code as i32, "{sentence}");
        }
    }
}

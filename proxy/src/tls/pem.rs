//! Why a text is no PEM, in words of our own.

use rustls_pki_types::pem::Error;

/// Why a text is no PEM. Nothing of the text is told: a line without its breaks is a whole private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// There is no END line.
    #[error("a section has no line that ends it; have the line breaks been lost?")]
    Unended,
    /// A BEGIN line goes on.
    #[error("a line that begins a section goes on after it; have the line breaks been lost?")]
    Begun,
    /// What is in a section is something else.
    #[error("a section is not base64")]
    NotBase64,
    /// None of what is looked for.
    #[error("it has no such section")]
    Nothing,
    /// Over the limit of the decoder.
    #[error("a section is too large")]
    TooLarge,
    /// Something else.
    #[error("it cannot be read")]
    Unreadable,
}

impl From<Error> for PemError {
    fn from(error: Error) -> Self {
        match error {
            Error::MissingSectionEnd { .. } => Self::Unended,
            Error::IllegalSectionStart { .. } => Self::Begun,
            Error::Base64Decode(_) => Self::NotBase64,
            Error::NoItemsFound => Self::Nothing,
            Error::SectionTooLarge => Self::TooLarge,
            // Bytes in memory do not fail to be read; the enum is open.
            Error::Io(_) | _ => Self::Unreadable,
        }
    }
}

//! What a stored secret may be.

use nullspace_types::vault::StoredSecretCreate;
use nullspace_types::{Error, Result};

/// Longest name.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest value: what fits a header.
pub const VALUE_BYTES_MAX: usize = 4096;

/// A valid name.
pub fn name(text: &str) -> Result<&str> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(valid) {
        return Err(Error::invalid(format!(
            "the name of a secret must be 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, _, - and ., got {text:?}"
        )));
    }
    Ok(text)
}

/// The name and the value of a valid request. What is wrong with a value is said without it.
pub fn validate(request: &StoredSecretCreate) -> Result<(&str, &str)> {
    let given = request.name.as_deref().ok_or_else(|| Error::invalid("name is missing"))?;
    let value = request.value.as_deref().ok_or_else(|| Error::invalid("value is missing"))?;
    if value.is_empty() || value.len() > VALUE_BYTES_MAX {
        let got = value.len();
        return Err(Error::invalid(format!("value must be 1 to {VALUE_BYTES_MAX} bytes long, got {got}")));
    }
    if !value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Err(Error::invalid("value must be printable ASCII"));
    }
    Ok((name(given)?, value))
}

//! Which sandboxes to list: the query's texts become a [`ListSpec`], or a refusal that names the
//! parameter. Also the projection to the `fields` that were asked for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nullspace_types::id::SandboxId;
use nullspace_types::sandbox::{SANDBOX_FIELDS, Sandbox, SandboxListQuery, SandboxStatus};
use nullspace_types::{Code, Error, Result};
use serde_json::{Map, Value};

/// Largest page, and the page of a query that names no limit.
pub const PAGE_MAX: u32 = 100;

/// Statuses of an unfiltered list: all but history.
pub const LISTED: [SandboxStatus; 4] =
    [SandboxStatus::Creating, SandboxStatus::Running, SandboxStatus::Paused, SandboxStatus::Error];

/// A valid query.
#[derive(Debug, Clone, PartialEq)]
pub struct ListSpec {
    /// Only these.
    pub statuses: Vec<SandboxStatus>,
    /// Only those of this template.
    pub template: Option<String>,
    /// Only those whose metadata has all of these pairs.
    pub metadata: Map<String, Value>,
    /// At most this many.
    pub limit: u32,
    /// Only those made before this one.
    pub after: Option<SandboxId>,
    /// Only these of each.
    pub fields: Option<Vec<&'static str>>,
}

/// The token that leads to what comes after `last`.
pub fn next_token(last: SandboxId) -> String {
    URL_SAFE_NO_PAD.encode(format!("v1:{last}"))
}

fn cursor(token: &str) -> Result<SandboxId> {
    let refused = || Error::invalid("next_token is not one that this server gave out");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| refused())?;
    text.strip_prefix("v1:").ok_or_else(refused)?.parse().map_err(|_| refused())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn statuses(text: &str) -> Result<Vec<SandboxStatus>> {
    let mut found = Vec::new();
    for word in words(text) {
        let status =
            SandboxStatus::ALL.into_iter().find(|status| status.as_str() == word).ok_or_else(|| {
                let known = SandboxStatus::ALL.map(SandboxStatus::as_str).join(", ");
                Error::invalid(format!("state must consist of {known}, separated by commas; got {word:?}"))
            })?;
        if !found.contains(&status) {
            found.push(status);
        }
    }
    if found.is_empty() {
        return Err(Error::invalid("state must name at least one status"));
    }
    Ok(found)
}

/// Judges a list of fields.
pub fn fields(text: &str) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for word in words(text) {
        let field = SANDBOX_FIELDS.iter().find(|field| **field == word).ok_or_else(|| {
            Error::new(
                Code::InvalidFields,
                format!("fields: a sandbox has no field {word:?}; it has {}", SANDBOX_FIELDS.join(", ")),
            )
        })?;
        if !found.contains(field) {
            found.push(*field);
        }
    }
    if found.is_empty() {
        return Err(Error::new(Code::InvalidFields, "fields must name at least one field"));
    }
    Ok(found)
}

/// Judges a query.
pub fn validate(query: &SandboxListQuery) -> Result<ListSpec> {
    let limit = match query.limit.as_deref() {
        None => PAGE_MAX,
        Some(text) => {
            text.parse::<u32>().ok().filter(|limit| (1..=PAGE_MAX).contains(limit)).ok_or_else(|| {
                Error::invalid(format!("limit must be between 1 and {PAGE_MAX}, got {text:?}"))
            })?
        }
    };
    let metadata = match query.metadata.as_deref() {
        None => Map::new(),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("metadata must be a JSON object: {error}")))?,
    };
    Ok(ListSpec {
        statuses: query.state.as_deref().map_or_else(|| Ok(LISTED.to_vec()), statuses)?,
        template: query.template.clone(),
        metadata,
        limit,
        after: query.next_token.as_deref().map(cursor).transpose()?,
        fields: query.fields.as_deref().map(fields).transpose()?,
    })
}

/// A sandbox as JSON, with the named fields only. A field that has no value is null.
pub fn project(sandbox: &Sandbox, fields: Option<&[&'static str]>) -> Result<Value> {
    let value = serde_json::to_value(sandbox).map_err(Error::internal)?;
    let (Some(fields), Value::Object(mut all)) = (fields, value.clone()) else { return Ok(value) };
    Ok(Value::Object(
        fields.iter().map(|field| ((*field).to_owned(), all.remove(*field).unwrap_or(Value::Null))).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(set: impl FnOnce(&mut SandboxListQuery)) -> Result<ListSpec> {
        let mut query = SandboxListQuery::default();
        set(&mut query);
        validate(&query)
    }

    #[test]
    fn an_empty_query_lists_all_but_history() {
        let spec = query(|_| {}).unwrap();
        assert!(spec.statuses == LISTED && spec.limit == 100 && spec.after.is_none());
    }

    #[test]
    fn every_parameter_out_of_its_rules_is_named() {
        for (spec, code, says) in [
            (query(|q| q.limit = Some("0".into())), Code::InvalidRequest, "limit must be between 1 and 100"),
            (
                query(|q| q.limit = Some("101".into())),
                Code::InvalidRequest,
                "limit must be between 1 and 100",
            ),
            (query(|q| q.limit = Some("x".into())), Code::InvalidRequest, "limit must be between 1 and 100"),
            (query(|q| q.state = Some("running,lost".into())), Code::InvalidRequest, "got \"lost\""),
            (query(|q| q.state = Some(" , ".into())), Code::InvalidRequest, "at least one status"),
            (
                query(|q| q.metadata = Some("[1]".into())),
                Code::InvalidRequest,
                "metadata must be a JSON object",
            ),
            (query(|q| q.fields = Some("id,secret".into())), Code::InvalidFields, "no field \"secret\""),
            (query(|q| q.fields = Some("".into())), Code::InvalidFields, "at least one field"),
            (query(|q| q.next_token = Some("!".into())), Code::InvalidRequest, "next_token"),
            (query(|q| q.next_token = Some("djE6c2Jf".into())), Code::InvalidRequest, "next_token"),
        ] {
            let error = spec.unwrap_err();
            assert_eq!(error.code, code);
            assert!(error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn a_token_leads_back_to_where_the_page_ended() {
        let id = SandboxId::new();
        assert_eq!(query(|q| q.next_token = Some(next_token(id))).unwrap().after, Some(id));
    }
}

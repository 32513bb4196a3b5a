//! Who may call.
//!
//! Before the machine is adopted, whoever has the checkpoint's token prepares it: Hello, Run, Sync
//! and Adopt; afterwards all calls, with the token that the last Adopt gave. Adopt itself is let through
//! with the token before that as well: a caller that lost the answer asks again, and proves with the
//! request that it is the same one. Tokens are compared in constant time and never printed.

use std::sync::{Mutex, MutexGuard};

use subtle::ConstantTimeEq;
use tonic::Status;

/// The service's name in request paths.
const HELLO: &str = "/nullspace.guest.v1.Agent/Hello";
const ADOPT: &str = "/nullspace.guest.v1.Agent/Adopt";
const RUN: &str = "/nullspace.guest.v1.Agent/Run";
const SYNC: &str = "/nullspace.guest.v1.Agent/Sync";

/// The tokens taken now.
pub struct Tokens(Mutex<Held>);

struct Held {
    /// The checkpoint's until the machine is adopted.
    in_force: String,
    /// The one before, once it was adopted.
    former: Option<String>,
}

impl Tokens {
    /// Before adoption.
    pub fn new(checkpoint: String) -> Self {
        Self(Mutex::new(Held { in_force: checkpoint, former: None }))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("no holder panics")
    }

    /// From now on this token counts.
    pub fn replace(&self, token: String) {
        let mut held = self.held();
        held.former = Some(std::mem::replace(&mut held.in_force, token));
    }

    /// Whether this `authorization` header has the token that counts now.
    pub fn is_in_force(&self, authorization: Option<&[u8]>) -> bool {
        same(bearer(authorization), self.held().in_force.as_bytes())
    }

    /// Whether a call to `path` with this `authorization` header may go on.
    pub fn check(&self, path: &str, authorization: Option<&[u8]>) -> Result<(), Status> {
        let given = bearer(authorization);
        let held = self.held();
        let is_in_force = same(given, held.in_force.as_bytes());
        let is_former = held.former.as_ref().is_some_and(|token| same(given, token.as_bytes()));
        let allowed = match (&held.former, path) {
            (Some(_), ADOPT) => is_in_force || is_former,
            (Some(_), _) => is_in_force,
            (None, HELLO | ADOPT | RUN | SYNC) => is_in_force,
            (None, _) if is_in_force => {
                return Err(Status::failed_precondition("this machine has not been adopted yet"));
            }
            (None, _) => false,
        };
        if allowed { Ok(()) } else { Err(Status::unauthenticated("the token is missing or wrong")) }
    }
}

fn bearer(authorization: Option<&[u8]>) -> &[u8] {
    authorization.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default()
}

/// Equal and not empty, in a time that tells nothing about the contents.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    bool::from(a.ct_eq(b)) && !a.is_empty()
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn code(tokens: &Tokens, path: &str, header: Option<&str>) -> Option<Code> {
        tokens.check(path, header.map(str::as_bytes)).err().map(|status| status.code())
    }

    #[test]
    fn the_checkpoints_token_prepares_and_adopts_the_machine_and_ends_with_adoption() {
        let read = "/nullspace.guest.v1.Agent/ReadFile";
        let tokens = Tokens::new("old".into());
        assert_eq!(code(&tokens, HELLO, Some("Bearer old")), None);
        assert_eq!(code(&tokens, ADOPT, Some("Bearer old")), None);
        assert_eq!(code(&tokens, RUN, Some("Bearer old")), None);
        assert_eq!(code(&tokens, read, Some("Bearer old")), Some(Code::FailedPrecondition));
        for wrong in [None, Some(""), Some("Bearer "), Some("Bearer olD"), Some("old"), Some("bearer old")] {
            assert_eq!(code(&tokens, HELLO, wrong), Some(Code::Unauthenticated), "{wrong:?}");
        }
        tokens.replace("new".into());
        for path in [HELLO, RUN, read] {
            assert_eq!(code(&tokens, path, Some("Bearer new")), None);
            assert_eq!(code(&tokens, path, Some("Bearer old")), Some(Code::Unauthenticated));
        }
        assert_eq!(code(&tokens, ADOPT, Some("Bearer old")), None);
    }

    #[test]
    fn a_token_that_was_replaced_twice_opens_nothing() {
        let read = "/nullspace.guest.v1.Agent/ReadFile";
        let tokens = Tokens::new("checkpoint".into());
        tokens.replace("parent".into());
        tokens.replace("child".into());
        assert!(tokens.is_in_force(Some(b"Bearer child")) && !tokens.is_in_force(Some(b"Bearer parent")));
        assert_eq!(code(&tokens, read, Some("Bearer child")), None);
        for path in [HELLO, RUN, read] {
            assert_eq!(code(&tokens, path, Some("Bearer parent")), Some(Code::Unauthenticated));
        }
        // For a caller that lost the answer.
        assert_eq!(code(&tokens, ADOPT, Some("Bearer parent")), None);
        assert_eq!(code(&tokens, ADOPT, Some("Bearer checkpoint")), Some(Code::Unauthenticated));
    }

    #[test]
    fn an_empty_token_opens_nothing() {
        let tokens = Tokens::new(String::new());
        assert_eq!(code(&tokens, HELLO, Some("Bearer ")), Some(Code::Unauthenticated));
    }
}

//! What is presented: the plaintext of a key, or what stands for one of its secrets without it, such as
//! a token of ours whose signature is verified.
//!
//! What a token was made from is loaded by the id of its secret and judged like a key: it dies with the
//! key, the secret, the consumer and the tenant, and may never do more than the key does now. Beside it
//! stands what ends the token alone: its own end, its audience, and that it was revoked.

use std::cmp::min;

use super::decide::{Decision, Outcome, Request};
use super::snapshot::Subject;
use super::{Answer, Asked, Failure, TRIES, Validation, judge};
use crate::id::{KeyId, SecretId, TenantId, TokenId};
use crate::scope::Scope;
use crate::time::Timestamp;

/// What is presented.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// The plaintext of a key.
    Key(&'a str),
    Proof(Proof<'a>),
    /// Known to be no good before anything is asked for, such as a token that nobody signed.
    Malformed,
}

/// What a token of ours says, once it is believed.
#[derive(Clone, Copy, Debug)]
pub struct Proof<'a> {
    pub key: &'a KeyId,
    pub secret: &'a SecretId,
    pub token: &'a TokenId,
    /// The slug or a resource of the service that it is for.
    pub audience: &'a str,
    pub scopes: &'a [Scope],
    pub expires_at: Timestamp,
}

impl<'a> From<&'a str> for Credential<'a> {
    fn from(key: &'a str) -> Self {
        Self::Key(key)
    }
}

impl<'a> From<&'a String> for Credential<'a> {
    fn from(key: &'a String) -> Self {
        Self::Key(key)
    }
}

impl Validation {
    /// Decides about what is presented for a service of `tenant`, and when that was. Charges and notes
    /// nothing: see [`Self::note`].
    ///
    /// # Errors
    /// [`Failure`] when it cannot be decided: never to be told as a refusal.
    pub async fn tell(
        &self,
        presented: Credential<'_>,
        tenant: &TenantId,
        service: &str,
        request: &Request<'_>,
    ) -> Result<(Answer, Timestamp), Failure> {
        let asked = Asked::Service(service);
        let (loaded, proof) = match presented {
            Credential::Key(key) => {
                let loaded = self.load(key, Some(tenant), asked, request.ip).await?;
                (loaded, None)
            }
            Credential::Malformed => (Err(Outcome::Malformed), None),
            Credential::Proof(proof) => match self.load_proof(&proof, tenant, asked).await? {
                Some((subject, revoked)) => (Ok(subject), Some((proof, revoked))),
                None => (Err(Outcome::Unknown), None),
            },
        };
        // Only now: a load may have been waited for.
        let now = self.clock.now();
        let mut answer = judge(loaded, request, now);
        if let (Some((proof, revoked)), Some(subject)) = (proof, &answer.subject) {
            let fault = proof.fault(subject, revoked, now);
            answer.decision = first(answer.decision, fault);
        }
        Ok((answer, now))
    }

    /// `None` if there is no such secret of this key in the tenant, else whether the token was revoked.
    async fn load_proof(
        &self,
        proof: &Proof<'_>,
        tenant: &TenantId,
        asked: Asked<'_>,
    ) -> Result<Option<(Subject, bool)>, Failure> {
        for _ in 0..TRIES {
            let key = match self.records.key_of_secret(proof.secret).await? {
                Some(key) if key.tenant_id == *tenant && key.key_id == *proof.key => key,
                Some(_) | None => return Ok(None),
            };
            let token = self.records.token(proof.token).await?;
            let subject = self.records.join(key, asked.service()).await?;
            // One of them may have changed while another was waited for.
            if self.records.holds(&subject) && self.records.holds_token(&token) {
                return Ok(Some((subject.narrowed_to(proof.scopes), token.value)));
            }
        }
        Err(Failure::Busy)
    }
}

impl Proof<'_> {
    /// What is wrong with the token itself.
    fn fault(&self, subject: &Subject, revoked: bool, now: Timestamp) -> Option<Outcome> {
        let is_for = subject.service.as_ref().is_some_and(|entry| {
            let service = &entry.service;
            service.slug.as_str() == self.audience
                || service.settings.tokens.resources.contains(self.audience)
        });
        if revoked {
            Some(Outcome::Revoked)
        } else if self.expires_at <= now {
            Some(Outcome::Expired)
        } else if is_for {
            None
        } else {
            Some(Outcome::WrongService)
        }
    }
}

/// What comes first in the order of the codes.
fn first(decision: Decision, fault: Option<Outcome>) -> Decision {
    let Some(fault) = fault else {
        return decision;
    };
    let outcome = match decision.outcome {
        Outcome::Valid => fault,
        refused => min(refused, fault),
    };
    if outcome == decision.outcome {
        return decision;
    }
    Decision {
        outcome,
        missing_scopes: Vec::new(),
    }
}

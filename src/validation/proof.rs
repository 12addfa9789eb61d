//! What is presented: the plaintext of a key, or what stands for one of its secrets without it, such as
//! a token of ours whose signature is verified.
//!
//! What a token was made from is loaded by the id of its secret and judged like a key: it dies with the
//! key, the secret, the consumer and the tenant, and may never do more than the key does now. Beside it
//! stands what ends the token alone: its own end, its audience, and that it was revoked. A token that was
//! exchanged for another client ends with the key of that client too, and does no more than both do; and it ends
//! with the keys of whoever exchanged it before.

use std::cmp::min;
use std::sync::Arc;

use futures_util::future::{try_join_all, try_join4};

use super::decide::{self, Decision, Outcome, Request};
use super::snapshot::{ServiceEntry, Subject};
use super::{Answer, Asked, Failure, TRIES, Validation, judge};
use crate::cache::Entry;
use crate::id::{KeyId, SecretId, TenantId, TokenId};
use crate::scope::Scope;
use crate::text::Slug;
use crate::time::Timestamp;

/// What is presented.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// The plaintext of a key.
    Key(&'a str),
    /// The same, and what [`Validation::identify`] found by it just now.
    Identified(&'a str, &'a Subject),
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
    /// The key and the secret of the client that it was exchanged for, if that is another.
    pub client: Option<(&'a KeyId, &'a SecretId)>,
    /// Further secrets that it dies with, whatever their keys grant.
    pub others: &'a [SecretId],
    /// The service that it was made for.
    pub service: &'a Slug,
    /// The slug or a resource of that service.
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
            Credential::Identified(key, found) => {
                let found = self.records.join(Arc::clone(&found.key), asked.service());
                let found = found.await?;
                let loaded = if found.key.owner.tenant_id == *tenant && self.records.holds(&found) {
                    Ok(found)
                } else {
                    self.load(key, Some(tenant), asked, request.ip).await?
                };
                (loaded, None)
            }
            Credential::Malformed => (Err(Outcome::Malformed), None),
            // In a box, because it is large, and keys have no use for it.
            Credential::Proof(proof) => {
                match Box::pin(self.load_proof(&proof, tenant, asked)).await? {
                    Some(proved) => (Ok(proved.subject.clone()), Some((proof, proved))),
                    None => (Err(Outcome::Unknown), None),
                }
            }
        };
        // Only now: a load may have been waited for.
        let now = self.clock.now();
        let mut answer = judge(loaded, request, now);
        if let Some((proof, proved)) = proof {
            answer.decision = first(answer.decision, proof.fault(&proved, now));
        }
        Ok((answer, now))
    }

    /// `None` if there is no such secret of this key in the tenant.
    async fn load_proof(
        &self,
        proof: &Proof<'_>,
        tenant: &TenantId,
        asked: Asked<'_>,
    ) -> Result<Option<Proved>, Failure> {
        for _ in 0..TRIES {
            // At the same time: the slowest of them is waited for, not each in turn.
            let client = async {
                match proof.client {
                    None => Ok(Some(None)),
                    Some((key, secret)) => {
                        let client = self.proved(Some(key), secret, tenant, asked).await;
                        client.map(|found| found.map(Some))
                    }
                }
            };
            let others = proof
                .others
                .iter()
                .map(|secret| self.proved(None, secret, tenant, Asked::None));
            let (subject, client, others, token) = try_join4(
                self.proved(Some(proof.key), proof.secret, tenant, asked),
                client,
                try_join_all(others),
                self.records.token(proof.token),
            )
            .await?;
            let others: Option<Vec<Subject>> = others.into_iter().collect();
            let (Some(subject), Some(client), Some(others)) = (subject, client, others) else {
                return Ok(None);
            };
            let made_for = match &subject.service {
                Some(asked) if asked.service.slug == *proof.service => Some(Arc::clone(asked)),
                Some(_) | None => {
                    let slug = proof.service.as_str();
                    self.records.service_of(tenant, slug).await?
                }
            };
            // One of them may have changed while another was waited for.
            let all_hold = self.records.holds(&subject)
                && client
                    .iter()
                    .chain(&others)
                    .all(|it| self.records.holds(it))
                && made_for
                    .iter()
                    .all(|entry| self.records.holds_service(entry))
                && self.records.holds_token(&token);
            if all_hold {
                let mut subject = subject.narrowed_to(proof.scopes);
                if let Some(client) = &client {
                    subject = subject.narrowed_to(client.scopes());
                }
                return Ok(Some(Proved {
                    subject,
                    client,
                    others,
                    is_revoked: token.value,
                    made_for,
                }));
            }
        }
        Err(Failure::Busy)
    }

    /// The key, as its secret proves it; `None` if there is no such secret, of this key if one is given, in
    /// the tenant.
    async fn proved(
        &self,
        key: Option<&KeyId>,
        secret: &SecretId,
        tenant: &TenantId,
        asked: Asked<'_>,
    ) -> Result<Option<Subject>, Failure> {
        match self.records.key_of_secret(secret).await? {
            Some(found)
                if found.owner.tenant_id == *tenant
                    && key.is_none_or(|key| found.key_id == *key) =>
            {
                Ok(Some(self.records.join(found, asked.service()).await?))
            }
            Some(_) | None => Ok(None),
        }
    }
}

/// What a proof is judged by.
struct Proved {
    /// Narrowed to what the token says.
    subject: Subject,
    client: Option<Subject>,
    others: Vec<Subject>,
    is_revoked: bool,
    made_for: Option<Arc<Entry<ServiceEntry>>>,
}

impl Proof<'_> {
    /// What is wrong with the token itself.
    fn fault(&self, proved: &Proved, now: Timestamp) -> Option<Outcome> {
        let its_own = [
            proved.is_revoked.then_some(Outcome::Revoked),
            (self.expires_at <= now).then_some(Outcome::Expired),
            (!self.is_for(proved)).then_some(Outcome::WrongService),
        ];
        let bound = proved.client.iter().chain(&proved.others);
        let of_bound = bound.filter_map(|it| decide::fault(it, now));
        its_own.into_iter().flatten().chain(of_bound).min()
    }

    /// Whether it is a token for the service asked for: made for it, or for one that shares its tokens
    /// with it.
    fn is_for(&self, proved: &Proved) -> bool {
        let (Some(asked), Some(made_for)) = (&proved.subject.service, &proved.made_for) else {
            return false;
        };
        let service = &made_for.service;
        let is_named = service.slug.as_str() == self.audience
            || service.settings.tokens.resources.contains(self.audience);
        let is_shared = made_for.is_active
            && service
                .settings
                .exchange
                .shares_with(&asked.service.settings.exchange);
        is_named && (service.id == asked.service.id || is_shared)
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

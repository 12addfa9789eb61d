//! Who asks: the keys that callers present for themselves.

use std::net::IpAddr;
use std::rc::Rc;

use super::decide::{self, Outcome, Request};
use super::snapshot::Subject;
use super::spend::{Charges, LimitHeaders};
use super::{Asked, Failure, Validation, lookup_id, outcome};
use crate::audit::TenantRef;
use crate::clock::Reading;
use crate::id::KeyId;
use crate::ratelimit::Verdict;
use crate::rights::Rights;
use crate::text::Environment;
use crate::time::Timestamp;

/// A management key, authenticated.
#[derive(Clone, Debug)]
pub struct Identified {
    pub key_id: KeyId,
    pub tenant: TenantRef,
    /// By its grant on the built-in service `keystead`; none without one.
    pub rights: Rights,
    pub environment: Environment,
    pub expires_at: Option<Timestamp>,
    /// Whether a rotation has put another secret in the place of the presented one.
    pub superseded: bool,
    /// Where the key's own limits stand.
    pub limits: Option<LimitHeaders>,
}

impl Identified {
    fn of(subject: &Subject, rights: Rights, limits: Option<LimitHeaders>) -> Self {
        Self {
            key_id: subject.key.key_id.clone(),
            tenant: subject.tenant.to_ref(),
            rights,
            environment: subject.key.owner.environment.clone(),
            expires_at: subject.end(),
            superseded: subject.key.superseded,
            limits,
        }
    }
}

/// Why a presented key authenticates nobody.
#[derive(Debug)]
pub enum AuthFailure {
    /// Malformed or unknown.
    Invalid,
    /// A good key without a grant on `keystead`: told like an unknown one.
    NoManagementKey(KeyId),
    /// A known management key that is refused; the holder may be told.
    Refused(Outcome),
    /// A known key that has used up what it may.
    Limited(Outcome, LimitHeaders),
    Failed(Failure),
}

impl AuthFailure {
    /// For log and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NoManagementKey(_) => "not_a_management_key",
            Self::Refused(outcome) | Self::Limited(outcome, _) => outcome.code(),
            Self::Failed(_) => "failed",
        }
    }
}

impl Validation {
    /// The caller of a management key without limits of its own, if memory has all that is needed and
    /// it is good; else `None`.
    pub fn caller_now(&self, presented: &str, peer: IpAddr, at: &Reading) -> Option<Rc<Subject>> {
        lookup_id(presented).ok()?;
        let print = self.records.print(presented)?;
        let met = self.callers.find(&print, &self.records, at.uptime_us);
        let caller = if let Some(met) = met {
            met
        } else {
            let asked = Asked::Management;
            let loaded = self.load_now(&print, None, None, asked, at.uptime_us)?;
            let caller = Rc::new(loaded.ok()?);
            self.callers.keep(print, &caller);
            caller
        };
        let by_itself = Request {
            ip: Some(peer),
            cost: 1,
            ..Request::default()
        };
        let is_good = decide::decide(&caller, &by_itself, at.wall)
            .outcome
            .is_valid();
        (is_good && !Charges::has_any(&caller)).then_some(caller)
    }

    /// As [`Self::holder`] for the administration, of such a caller.
    pub fn holder_now(&self, presented: &str, peer: IpAddr, at: &Reading) -> Option<Rc<Subject>> {
        let holder = self.caller_now(presented, peer, at)?;
        self.used.note(&holder.key, at.wall);
        Some(holder)
    }

    /// Authenticates a management key by itself: its tenant is its own.
    pub async fn authenticate(
        &self,
        presented: &str,
        ip: Option<IpAddr>,
    ) -> Result<Identified, AuthFailure> {
        let (subject, limits) = self.holder(presented, ip, Asked::Management).await?;
        Ok(Identified::of(&subject, subject.rights().clone(), limits))
    }

    /// Authenticates the holder of any key, for its own affairs.
    pub async fn authenticate_holder(
        &self,
        presented: &str,
        ip: Option<IpAddr>,
    ) -> Result<Identified, AuthFailure> {
        let (subject, limits) = self.holder(presented, ip, Asked::None).await?;
        Ok(Identified::of(&subject, Rights::none(), limits))
    }

    /// Authenticates whoever holds a key: for the administration, or, with [`Asked::None`], for its own
    /// affairs. Tells where the key's own limits stand, if it was charged.
    pub async fn holder(
        &self,
        presented: &str,
        ip: Option<IpAddr>,
        asked: Asked<'_>,
    ) -> Result<(Subject, Option<LimitHeaders>), AuthFailure> {
        let subject = match self.load(presented, None, asked, ip).await {
            Err(failure) => return Err(AuthFailure::Failed(failure)),
            Ok(Err(_not_identified)) => return Err(AuthFailure::Invalid),
            Ok(Ok(subject)) => subject,
        };
        let request = Request {
            ip,
            cost: 1,
            ..Request::default()
        };
        let now = self.clock.now();
        match decide::decide(&subject, &request, now).outcome {
            // To end or replace a key that leaked must not depend on what its thief left of it.
            Outcome::Valid if !subject.asks_service => Ok((subject, None)),
            Outcome::Valid => {
                let spent = self.spend(&subject, request.cost).await;
                let spent = spent.map_err(AuthFailure::Failed)?;
                let limits = LimitHeaders::of(&subject, &spent);
                if spent.verdict != Verdict::Admitted {
                    return Err(AuthFailure::Limited(
                        outcome(spent.verdict),
                        limits.unwrap_or_default(),
                    ));
                }
                self.used.note(&subject.key, now);
                Ok((subject, limits))
            }
            // A good key that is no management key says as little as an unknown one.
            Outcome::WrongService => Err(AuthFailure::NoManagementKey(subject.key.key_id.clone())),
            refused => Err(AuthFailure::Refused(refused)),
        }
    }
}

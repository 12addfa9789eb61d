//! What may be an attack: typed log lines of the target `security`, and a counter for each.
//!
//! A flood is not a flood of lines. The first of a kind, and of whom it is about, is a line at once; what
//! follows within a minute is one line with their count. What is told apart is bounded: beyond that
//! the rest of a kind is one whom.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::metrics::Labelled;

/// How long what follows a first one is counted into one line.
const WINDOW_US: u64 = 60_000_000;

/// How many of whom are told apart at a time.
const WHOM_MAX: usize = 1_000;

/// No text of a line is longer.
const TEXT_BYTES_MAX: usize = 256;

/// Everything that is told so. The names are in docs/operating.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecurityEvent {
    Unauthenticated,
    UnknownKey,
    InvalidJwt,
    CallerRefused,
    IpNotAllowed,
    CredentialInQuery,
    RefusedAttempt,
    Escalation,
    CrossTenant,
    RevokedKeyUsed,
    SupersededSecretUsed,
    ScopeDenied,
    FailureBurst,
    AuditBroken,
    AuditNotWritten,
    UsageBroken,
    ClockJumped,
    Panic,
}

impl SecurityEvent {
    pub const ALL: [Self; 18] = [
        Self::Unauthenticated,
        Self::UnknownKey,
        Self::InvalidJwt,
        Self::CallerRefused,
        Self::IpNotAllowed,
        Self::CredentialInQuery,
        Self::RefusedAttempt,
        Self::Escalation,
        Self::CrossTenant,
        Self::RevokedKeyUsed,
        Self::SupersededSecretUsed,
        Self::ScopeDenied,
        Self::FailureBurst,
        Self::AuditBroken,
        Self::AuditNotWritten,
        Self::UsageBroken,
        Self::ClockJumped,
        Self::Panic,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::UnknownKey => "unknown_key",
            Self::InvalidJwt => "invalid_jwt",
            Self::CallerRefused => "caller_refused",
            Self::IpNotAllowed => "ip_not_allowed",
            Self::CredentialInQuery => "credential_in_query",
            Self::RefusedAttempt => "refused_attempt",
            Self::Escalation => "escalation",
            Self::CrossTenant => "cross_tenant",
            Self::RevokedKeyUsed => "revoked_key_used",
            Self::SupersededSecretUsed => "superseded_secret_used",
            Self::ScopeDenied => "scope_denied",
            Self::FailureBurst => "failure_burst",
            Self::AuditBroken => "audit_broken",
            Self::AuditNotWritten => "audit_not_written",
            Self::UsageBroken => "usage_broken",
            Self::ClockJumped => "clock_jumped",
            Self::Panic => "panic",
        }
    }

    const fn says(self) -> &'static str {
        match self {
            Self::Unauthenticated => "refused a request without a credential that can be read",
            Self::UnknownKey | Self::InvalidJwt | Self::CallerRefused | Self::IpNotAllowed => {
                "refused a credential"
            }
            Self::CredentialInQuery => "refused a credential in a URL",
            Self::RefusedAttempt => "refused what a caller has no right to",
            Self::Escalation => "refused to give away rights that the caller has not",
            Self::CrossTenant => "refused a caller another tenant",
            Self::RevokedKeyUsed => "a revoked key was presented",
            Self::SupersededSecretUsed => "a superseded secret was presented after its end",
            Self::ScopeDenied => "a key was presented for a scope that it has not",
            Self::FailureBurst => "many presented keys were refused in one minute",
            Self::AuditBroken => {
                "the audit chain was not left by us; look with: keystead audit verify"
            }
            Self::AuditNotWritten => "undid a change whose audit lines could not be written",
            Self::UsageBroken => {
                "the counts of a sealed hour are not what was sealed; look with: keystead audit verify"
            }
            Self::ClockJumped => "the clock seems to have jumped",
            Self::Panic => "a request ended in a panic",
        }
    }
}

/// One event and what is known of it. Holds no secret: who fills it in sees to that.
#[derive(Clone, Debug)]
pub struct Sighting {
    pub event: SecurityEvent,
    /// More than one when they were counted elsewhere.
    pub count: u64,
    /// About whom, so that one who floods hides no other: an address, a key, a caller.
    pub whom: String,
    pub reason: Option<String>,
    /// Its id, as those below are ids.
    pub tenant: Option<String>,
    pub service: Option<String>,
    pub key: Option<String>,
    pub secret: Option<String>,
    pub caller: Option<String>,
    pub ip: Option<String>,
    pub request_id: Option<String>,
}

impl Sighting {
    pub fn new(event: SecurityEvent, whom: impl Into<String>) -> Self {
        Self {
            event,
            count: 1,
            whom: whom.into(),
            reason: None,
            tenant: None,
            service: None,
            key: None,
            secret: None,
            caller: None,
            ip: None,
            request_id: None,
        }
    }

    /// The line. For who has no [`SecurityLog`]; everybody else notes it there.
    pub fn tell(&self) {
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "security",
                    event = self.event.as_str(),
                    count = self.count,
                    reason = head(self.reason.as_ref()),
                    tenant.id = head(self.tenant.as_ref()),
                    service = head(self.service.as_ref()),
                    key.id = head(self.key.as_ref()),
                    secret.id = head(self.secret.as_ref()),
                    caller = head(self.caller.as_ref()),
                    ip = head(self.ip.as_ref()),
                    request_id = head(self.request_id.as_ref()),
                    "{}",
                    self.event.says()
                )
            };
        }
        match self.event {
            SecurityEvent::AuditBroken
            | SecurityEvent::AuditNotWritten
            | SecurityEvent::UsageBroken
            | SecurityEvent::ClockJumped
            | SecurityEvent::Panic => {
                line!(error);
            }
            SecurityEvent::Unauthenticated
            | SecurityEvent::UnknownKey
            | SecurityEvent::InvalidJwt
            | SecurityEvent::CallerRefused
            | SecurityEvent::IpNotAllowed
            | SecurityEvent::CredentialInQuery
            | SecurityEvent::RefusedAttempt
            | SecurityEvent::Escalation
            | SecurityEvent::CrossTenant
            | SecurityEvent::RevokedKeyUsed
            | SecurityEvent::SupersededSecretUsed
            | SecurityEvent::ScopeDenied
            | SecurityEvent::FailureBurst => line!(warn),
        }
    }
}

fn head(text: Option<&String>) -> Option<&str> {
    text.map(|text| {
        let end = text.floor_char_boundary(TEXT_BYTES_MAX);
        text.get(..end).unwrap_or_default()
    })
}

/// Where security events are noted, cheap to clone.
#[derive(Clone, Debug)]
pub struct SecurityLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counters: Labelled,
    kinds: Mutex<HashMap<(SecurityEvent, String), Counted>>,
}

#[derive(Debug)]
struct Counted {
    since_us: u64,
    /// Beyond those that have a line.
    further: u64,
    last: Sighting,
}

impl SecurityLog {
    /// `counters` has a label for each of [`SecurityEvent::ALL`].
    pub fn new(counters: Labelled) -> Self {
        Self(Arc::new(Inner {
            counters,
            kinds: Mutex::default(),
        }))
    }

    /// Counts it; the first one of its kind within a minute is a line now.
    pub fn note(&self, sighting: Sighting) {
        self.note_at(sighting, Clock::uptime_us());
    }

    fn note_at(&self, sighting: Sighting, now_us: u64) {
        let event = sighting.event;
        self.0.counters.add(event.as_str(), sighting.count);
        let mut kinds = self.kinds();
        let is_full = kinds.len() >= WHOM_MAX;
        let mut kind = (event, sighting.whom.clone());
        if is_full && !kinds.contains_key(&kind) {
            kind.1 = String::new();
        }
        if let Some(counted) = kinds.get_mut(&kind) {
            counted.further = counted.further.saturating_add(sighting.count);
            counted.last = sighting;
            return;
        }
        kinds.insert(
            kind,
            Counted {
                since_us: now_us,
                further: 0,
                last: sighting.clone(),
            },
        );
        drop(kinds);
        sighting.tell();
    }

    /// Tells what was counted in minutes that are over. Call it each second or so.
    pub fn tend(&self) {
        self.tend_at(Clock::uptime_us());
    }

    /// Tells all that was counted: at the stop.
    pub fn finish(&self) {
        self.tend_at(u64::MAX);
    }

    fn tend_at(&self, now_us: u64) {
        let over: Vec<Counted> = self
            .kinds()
            .extract_if(|_, counted| now_us.saturating_sub(counted.since_us) >= WINDOW_US)
            .map(|(_, counted)| counted)
            .collect();
        for counted in over.into_iter().filter(|counted| counted.further > 0) {
            let sighting = Sighting {
                count: counted.further,
                ..counted.last
            };
            sighting.tell();
        }
    }

    fn kinds(&self) -> std::sync::MutexGuard<'_, HashMap<(SecurityEvent, String), Counted>> {
        self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

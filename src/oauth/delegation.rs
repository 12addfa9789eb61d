//! Whom a token speaks for, and who acts there: `act` and `may_act` (RFC 8693 §4.1, §4.4), and `sub_id`
//! (RFC 9493) of a subject that another issuer named.
//!
//! An actor without `iss` is a consumer of ours, by its id. Only the outermost one acts; those inside are
//! told and never decided by.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::text::has_control;

/// So many actors stand in one token: a chain that is longer is refused.
pub const ACTORS_MAX: usize = 5;

const NAME_BYTES_MAX: usize = 255;

/// Who acts for the subject of a token, and who did before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Actor {
    pub sub: Box<str>,
    /// Who named it so; left out of a consumer of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<Box<str>>,
    /// Who acted before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Self>>,
}

impl Actor {
    /// One who follows nobody.
    pub fn new(sub: &str, iss: Option<&str>) -> Self {
        Self {
            sub: sub.into(),
            iss: iss.map(Into::into),
            act: None,
        }
    }

    /// The chain that a claim says. Of each actor `sub` and `iss` are kept and nothing else; where it says
    /// no issuer it is one of `issuer`, if that is given. `None` for what is no chain, or too long.
    pub fn read(claim: &Value, issuer: Option<&str>) -> Option<Self> {
        Self::read_within(claim, issuer, ACTORS_MAX)
    }

    fn read_within(claim: &Value, issuer: Option<&str>, left: usize) -> Option<Self> {
        let left = left.checked_sub(1)?;
        let claim = claim.as_object()?;
        let act = match claim.get("act") {
            None => None,
            Some(before) => Some(Box::new(Self::read_within(before, issuer, left)?)),
        };
        let iss = name(claim, "iss")?.or(issuer);
        Some(Self {
            act,
            ..Self::new(name(claim, "sub")??, iss)
        })
    }

    /// Puts it before those who acted already, unless it is the one who acts now. `None` for a chain that
    /// would be too long.
    pub fn after(self, before: Option<&Self>) -> Option<Self> {
        let Some(before) = before else {
            return Some(self);
        };
        if (&before.sub, &before.iss) == (&self.sub, &self.iss) {
            return Some(before.clone());
        }
        (before.length() < ACTORS_MAX).then(|| Self {
            act: Some(Box::new(before.clone())),
            ..self
        })
    }

    fn length(&self) -> usize {
        1 + self.act.as_ref().map_or(0, |before| before.length())
    }
}

/// Who alone may act for the subject of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MayAct {
    sub: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<Box<str>>,
}

impl MayAct {
    /// What a claim says; where it says no issuer and `sub` is no consumer of ours, it is one of `issuer`,
    /// if that is given. `None` for one that is not understood: whom it would let act is not known.
    pub fn read(claim: &Value, issuer: Option<&str>) -> Option<Self> {
        let claim = claim.as_object()?;
        if claim.keys().any(|name| !["sub", "iss"].contains(&&**name)) {
            return None;
        }
        let sub = name(claim, "sub")??;
        let is_ours = crate::id::ConsumerId::parse(sub).is_some();
        let iss = name(claim, "iss")?.or(issuer.filter(|_| !is_ours));
        Some(Self {
            sub: sub.into(),
            iss: iss.map(Into::into),
        })
    }

    /// Whether it names this actor; `ours` is our own issuer, which a consumer may be named with.
    pub fn names(&self, actor: &Actor, ours: &str) -> bool {
        let issuer = self.iss.as_deref().filter(|iss| *iss != ours);
        self.sub == actor.sub && issuer == actor.iss.as_deref()
    }
}

/// A subject that another issuer named (RFC 9493 §3.2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SubjectId {
    format: &'static str,
    pub iss: Box<str>,
    sub: Box<str>,
}

impl SubjectId {
    const FORMAT: &'static str = "iss_sub";

    pub fn new(iss: &str, sub: &str) -> Self {
        Self {
            format: Self::FORMAT,
            iss: iss.into(),
            sub: sub.into(),
        }
    }

    fn read(claim: &Value) -> Option<Self> {
        let claim = claim.as_object()?;
        let is_known = name(claim, "format")?? == Self::FORMAT;
        is_known.then_some(())?;
        Some(Self::new(name(claim, "iss")??, name(claim, "sub")??))
    }
}

/// What a token says about that beside its subject.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Delegation {
    /// Of a subject that another issuer named: `format` `iss_sub`, `iss` and `sub`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    pub sub_id: Option<SubjectId>,
    /// Who acts for the subject: `sub`, of others than consumers `iss`, and within `act` who did before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    pub act: Option<Actor>,
    /// Who alone may act for the subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    pub may_act: Option<MayAct>,
}

impl Delegation {
    /// Of a token that a client got for itself.
    pub const NONE: &'static Self = &Self {
        sub_id: None,
        act: None,
        may_act: None,
    };

    /// What a token of ours says. `None` for what none of ours says.
    pub fn read(claims: &Map<String, Value>) -> Option<Self> {
        let sub_id = match claims.get("sub_id") {
            None => None,
            Some(claim) => Some(SubjectId::read(claim)?),
        };
        let (act, may_act) = Self::actors(claims, None)?;
        Some(Self {
            sub_id,
            act,
            may_act,
        })
    }

    /// Who acts and who may by the claims of a token; of an issuer that is not ours if one is given.
    pub fn actors(
        claims: &Map<String, Value>,
        issuer: Option<&str>,
    ) -> Option<(Option<Actor>, Option<MayAct>)> {
        let act = match claims.get("act") {
            None => None,
            Some(claim) => Some(Actor::read(claim, issuer)?),
        };
        let may_act = match claims.get("may_act") {
            None => None,
            Some(claim) => Some(MayAct::read(claim, issuer)?),
        };
        Some((act, may_act))
    }

    /// Who acts, by its `sub`.
    pub fn actor(&self) -> Option<&str> {
        self.act.as_ref().map(|actor| &*actor.sub)
    }
}

/// The outer `None` is for what is no name at all.
#[expect(clippy::option_option, reason = "left out is not the same as no name")]
fn name<'a>(claim: &'a Map<String, Value>, member: &str) -> Option<Option<&'a str>> {
    match claim.get(member) {
        None => Some(None),
        Some(Value::String(text)) => {
            let is_name = (1..=NAME_BYTES_MAX).contains(&text.len()) && !has_control(text);
            is_name.then_some(Some(text))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const IDP: &str = "https://idp.example";
    const OURS: &str = "https://keys.example";
    const CONSUMER: &str = "con_01jd8k3v9we5m8t7q2x4z6y0ab";

    #[test]
    fn an_actor_is_its_names_and_nothing_else() {
        let claim =
            json!({"sub": "b", "exp": 1, "aud": "x", "act": {"sub": "a", "iss": "y", "jti": "z"}});
        let read = Actor::read(&claim, None).unwrap();
        assert_eq!(
            json!(read),
            json!({"sub": "b", "act": {"sub": "a", "iss": "y"}})
        );
        // What another issuer says is never read as a name of ours.
        let read = Actor::read(&claim, Some(IDP)).unwrap();
        assert_eq!(
            json!(read),
            json!({"sub": "b", "iss": IDP, "act": {"sub": "a", "iss": "y"}})
        );
        for bad in [
            json!("b"),
            json!([]),
            json!({}),
            json!({"sub": 1}),
            json!({"sub": ""}),
            json!({"sub": "a\nb"}),
            json!({"sub": "b", "iss": null}),
            json!({"sub": "b", "act": null}),
            json!({"sub": "b", "act": "a"}),
            json!({"sub": "b", "act": {"iss": "a"}}),
            json!({"sub": "x".repeat(256)}),
        ] {
            assert_eq!(Actor::read(&bad, None), None, "{bad}");
        }
    }

    #[test]
    fn a_chain_has_an_end() {
        let chain = |length: usize| {
            (1..length).fold(
                json!({"sub": "a0"}),
                |before, n| json!({"sub": format!("a{n}"), "act": before}),
            )
        };
        for length in 1..=20 {
            let read = Actor::read(&chain(length), None);
            assert_eq!(read.is_some(), length <= ACTORS_MAX, "{length}");
            let Some(read) = read else { continue };
            assert_eq!(read.length(), length);
            let next = Actor::new("next", None).after(Some(&read));
            assert_eq!(next.is_some(), length < ACTORS_MAX, "{length}");
            // Who acts already is not put before himself.
            let same = Actor::new(&read.sub, None).after(Some(&read));
            assert_eq!(same, Some(read));
        }
        let other = Actor::new("a", Some(IDP)).after(Some(&Actor::new("a", None)));
        assert_eq!(other.unwrap().length(), 2, "of another issuer");
    }

    #[test]
    fn who_may_act_is_named_exactly() {
        let ours = Actor::new(CONSUMER, None);
        let theirs = Actor::new("helpdesk", Some(IDP));
        for (claim, names) in [
            (json!({"sub": CONSUMER}), [true, false]),
            (json!({"sub": CONSUMER, "iss": OURS}), [true, false]),
            (json!({"sub": CONSUMER, "iss": IDP}), [false, false]),
            (json!({"sub": "helpdesk"}), [false, true]),
            (json!({"sub": "helpdesk", "iss": IDP}), [false, true]),
            (json!({"sub": "helpdesk", "iss": OURS}), [false, false]),
            (json!({"sub": "Helpdesk"}), [false, false]),
        ] {
            let may_act = MayAct::read(&claim, Some(IDP)).unwrap();
            let told = [&ours, &theirs].map(|actor| may_act.names(actor, OURS));
            assert_eq!(told, names, "{claim}");
            // It says the same in a token of ours.
            assert_eq!(MayAct::read(&json!(may_act), None), Some(may_act));
        }
        for bad in [
            json!("a"),
            json!([{"sub": "a"}]),
            json!({}),
            json!({"iss": IDP}),
            json!({"sub": "a", "client_id": "b"}),
            json!({"sub": ["a"]}),
        ] {
            assert_eq!(MayAct::read(&bad, Some(IDP)), None, "{bad}");
        }
    }

    #[test]
    fn what_a_token_of_ours_says_is_read_again_as_it_was_said() {
        let said = Delegation {
            sub_id: Some(SubjectId::new(IDP, "alice")),
            act: Actor::new(CONSUMER, None).after(Some(&Actor::new("x", Some(IDP)))),
            may_act: MayAct::read(&json!({"sub": "helpdesk"}), Some(IDP)),
        };
        let claims = json!(said);
        let read = |claims: &Value| Delegation::read(claims.as_object().unwrap());
        assert_eq!(read(&claims), Some(said));
        assert_eq!(read(&json!({})).as_ref(), Some(Delegation::NONE));
        for (member, bad) in [
            ("sub_id", json!({"format": "email", "iss": "a", "sub": "b"})),
            ("act", json!(null)),
            ("may_act", json!({"sub": 1})),
        ] {
            let mut claims = claims.clone();
            claims[member] = bad;
            assert_eq!(read(&claims), None, "{member}");
        }
    }
}

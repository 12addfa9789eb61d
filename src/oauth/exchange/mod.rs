//! Token exchange (RFC 8693): what was presented to a client becomes a token for the next service, on
//! behalf of whoever it speaks for.
//!
//! 1. what is asked for is parsed: nothing that is missing is made up for;
//! 2. the client is authenticated, and may use its key for the service itself;
//! 3. subject and actor token are read ([`party`]) and judged by themselves like anywhere else: a key, a
//!    token of ours with all that it was made from, a JWT of a configured issuer;
//! 4. the policy of the service (`exchange`) says whose tokens it takes and who may act, and `may_act` of
//!    the subject token whom its subject lets act;
//! 5. client and subject are charged, and the use is recorded under the operation `exchange`;
//! 6. the token is signed. It is made from the key that the subject token was made from, or, of another
//!    issuer's, from the client's.
//!
//! Nothing widens: the token is for one service on which both keys grant; it does what the subject token,
//! the key behind it and the client's key all allow, of what was asked for; and it ends with the first of
//! them. It dies with both, and with the keys of all who exchanged it, or acted, before ([`Bonds`]).

mod asked;
mod party;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use asked::Exchange;
use party::{Party, Role, not_taken};

use super::Oauth;
use super::bonds::Bonds;
use super::client::Client;
use super::delegation::{Actor, Delegation};
use super::form::Form;
use super::grant::{Granted, Origin, Wanted};
use super::mint::{Claims, Inner, Life, Provenance, asked_for};
use super::refusal::{ErrorCode, Refusal, of_outcome};
use crate::cache::Entry;
use crate::id::TokenId;
use crate::scope::{RequiredScope, Scope};
use crate::time::Timestamp;
use crate::usage::record::Operation;
use crate::validation::decide::{AskedEnvironment, Request};
use crate::validation::recorded::{Asking, TokenNamed};
use crate::validation::snapshot::{ServiceEntry, Subject};
use crate::validation::spend::LimitHeaders;
use crate::validation::{Asked, AuthFailure};

/// The client, and the service that it asks a token for.
struct Place {
    /// The client's key on that service.
    client: Subject,
    entry: Arc<Entry<ServiceEntry>>,
    audience: String,
}

impl Place {
    /// Whether the client may act for others: then it is believed about who presented what.
    fn is_actor(&self) -> bool {
        let actors = &self.entry.service.settings.exchange.actors;
        actors.has(&self.client.consumer.slug)
    }
}

/// A token that was read and is good by itself, and whom it speaks for.
struct Known<'a> {
    party: Party<'a>,
    identity: Actor,
    /// The end of it, and of what it was made from.
    end: Option<Timestamp>,
    /// The key behind it.
    key: Option<Subject>,
}

impl Oauth {
    /// The grant `urn:ietf:params:oauth:grant-type:token-exchange`.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn exchange(
        &self,
        client: &Client,
        form: &mut Form<'_>,
        origin: &Origin<'_>,
    ) -> Result<Granted, Refusal> {
        let exchange = Exchange::of(form)?;
        let mut wanted = Wanted::of(form)?;
        let holder = self.token_holder(client, origin).await?;
        let tenant = holder.tenant.slug.as_str();
        let subject = self.party(Role::Subject, &exchange.subject, tenant).await?;
        if let (Party::Own(token), None, None) = (&subject, &wanted.audience, &wanted.resource) {
            wanted.audience = Some(token.service.to_string());
        }
        let required = wanted.required();
        let place = self
            .place(client, &holder, &wanted, &required, origin)
            .await?;

        let id = self.mint.next_id();
        let asking = Asking {
            operation: Operation::Exchange,
            caller: place.client.key.key_id.as_str(),
            request_id: origin.request_id,
            method: None,
            path: None,
            user_agent: origin.user_agent,
            context: None,
            began_us: origin.at.uptime_us,
            token: None,
        };
        let ip = exchange.ip.filter(|_| place.is_actor());
        let subject = self.subject(subject, &place, ip, origin, &asking).await?;
        let actor = match &exchange.actor {
            None => None,
            Some(typed) => {
                let party = self.party(Role::Actor, typed, tenant).await?;
                Some(self.actor(party, &place, origin).await?)
            }
        };
        let act = self.acting(&place, &subject, actor.as_ref())?;
        let bonds = bonds(&place, &subject, actor.as_ref())?;

        let named = TokenNamed {
            id: id.as_str(),
            subject: &subject.identity.sub,
            actor: act.as_ref().map(|actor| &*actor.sub),
        };
        let context = made_of(&subject, actor.as_ref());
        let asking = Asking {
            token: Some(named),
            context: (!context.is_empty()).then_some(&context),
            ..asking
        };
        let (granted, limits) = self
            .spent(client, &place, &subject, required, (ip, origin), &asking)
            .await?;
        let ends = [
            granted.end(),
            place.client.end(),
            subject.end,
            actor.and_then(|actor| actor.end),
        ];
        let delegation = Delegation {
            sub_id: subject.party.sub_id(),
            act,
            may_act: subject.party.may_act().cloned(),
        };
        let scopes = wanted.scopes.as_deref();
        let mut token = self.exchanged(
            &place,
            &granted,
            scopes.unwrap_or(granted.scopes()),
            (&id, &subject.identity.sub, &delegation),
            &bonds,
            ends.into_iter().flatten().min(),
        )?;
        token.issued_token_type = Some(exchange.issued);
        token.limits = limits;
        Ok(token)
    }

    /// Step 2: charges nothing yet.
    async fn place(
        &self,
        client: &Client,
        holder: &Subject,
        wanted: &Wanted,
        required: &[RequiredScope],
        origin: &Origin<'_>,
    ) -> Result<Place, Refusal> {
        let target = self.target(holder, wanted).await??;
        let tenant = &holder.tenant.id;
        let request = Request {
            required_scopes: Cow::Borrowed(required),
            ip: Some(origin.ip),
            ..Request::default()
        };
        let asked = Asked::Service(&target.service);
        let secret = client.secret.expose_secret();
        let (decision, _, client) = self
            .validation
            .explain(secret, tenant, asked, &request)
            .await?;
        if let Some(refusal) = of_outcome(decision.outcome) {
            return Err(refusal);
        }
        let client = client.ok_or_else(Refusal::unknown_client)?;
        match client.service.clone() {
            Some(entry) if target.is_ours => Ok(Place {
                client,
                entry,
                audience: target.audience,
            }),
            Some(_) | None => Err(Refusal::invalid_target(
                "the tokens of this service are those of another authorization server",
            )),
        }
    }

    /// Steps 3 and 4 for the subject. A key that is refused leaves a use.
    async fn subject<'a>(
        &self,
        party: Party<'a>,
        place: &Place,
        ip: Option<IpAddr>,
        origin: &Origin<'_>,
        asking: &Asking<'_>,
    ) -> Result<Known<'a>, Refusal> {
        let answer = self.by_itself(&party, &place.client, ip).await?;
        // Whoever exchanges what is his own presents it himself.
        let of_client = answer.as_ref().and_then(|answer| answer.subject.as_ref());
        let is_own = of_client.is_some_and(|of| of.consumer.id == place.client.consumer.id);
        let answer = if is_own {
            let ip = Some(origin.ip);
            self.by_itself(&party, &place.client, ip).await?
        } else {
            answer
        };
        if let Some(answer) = &answer
            && !answer.decision.outcome.is_valid()
        {
            let request = Request {
                ip,
                ..Request::default()
            };
            let (tenant, slug) = (&place.client.tenant.id, place.entry.service.slug.as_str());
            self.validation
                .note((tenant, slug), &request, answer, asking, self.clock.now());
            return Err(Role::Subject.refused(answer.decision.outcome));
        }
        self.known(party, answer.and_then(|answer| answer.subject), place)
            .await
    }

    /// Steps 3 and 4 for the actor.
    async fn actor<'a>(
        &self,
        party: Party<'a>,
        place: &Place,
        origin: &Origin<'_>,
    ) -> Result<Known<'a>, Refusal> {
        let answer = self
            .by_itself(&party, &place.client, Some(origin.ip))
            .await?;
        if let Some(answer) = &answer
            && !answer.decision.outcome.is_valid()
        {
            return Err(Role::Actor.refused(answer.decision.outcome));
        }
        self.known(party, answer.and_then(|answer| answer.subject), place)
            .await
    }

    async fn known<'a>(
        &self,
        party: Party<'a>,
        key: Option<Subject>,
        place: &Place,
    ) -> Result<Known<'a>, Refusal> {
        if !self.is_taken(&party, &place.entry.service).await? {
            return Err(not_taken());
        }
        let ends = [party.end(), key.as_ref().and_then(Subject::end)];
        Ok(Known {
            identity: party.identity(key.as_ref().map(|key| &key.consumer.id)),
            end: ends.into_iter().flatten().min(),
            party,
            key,
        })
    }

    /// Step 4: who acts for the subject, before those who did already. Nobody where a client exchanges what
    /// is its own; a token that another acts with is not, whoever its subject is.
    fn acting(
        &self,
        place: &Place,
        subject: &Known<'_>,
        actor: Option<&Known<'_>>,
    ) -> Result<Option<Actor>, Refusal> {
        let consumer = &place.client.consumer;
        let client = Actor::new(consumer.id.as_str(), None);
        let acting = actor.map_or(&client, |actor| &actor.identity);
        let before = subject.party.act();
        if *acting == client && subject.identity == client && before.is_none() {
            return Ok(None);
        }
        let actors = &place.entry.service.settings.exchange.actors;
        let is_actor = place.is_actor()
            && match actor.and_then(|actor| actor.key.as_ref()) {
                Some(key) if *acting != client => actors.has(&key.consumer.slug),
                Some(_) | None => true,
            };
        if !is_actor {
            return Err(Refusal::new(
                ErrorCode::UnauthorizedClient,
                "the service does not let this client act for others",
            ));
        }
        let may_act = subject.party.may_act();
        let is_named = may_act.is_some_and(|may_act| may_act.names(acting, self.mint.issuer()));
        let is_let = is_named || (may_act.is_none() && *acting == client);
        if !is_let || *acting == subject.identity {
            return Err(Refusal::invalid_request(
                "the subject does not let this actor act: it must be the client, or named by may_act",
            ));
        }
        let act = acting.clone().after(before).ok_or_else(|| {
            Refusal::invalid_request("too many act for this subject one after the other")
        })?;
        Ok(Some(act))
    }

    /// Step 5: the key that the token is made from, narrowed to what it may do, and where its limits stand.
    async fn spent(
        &self,
        client: &Client,
        place: &Place,
        subject: &Known<'_>,
        required: Vec<RequiredScope>,
        (ip, origin): (Option<IpAddr>, &Origin<'_>),
        asking: &Asking<'_>,
    ) -> Result<(Subject, Option<LimitHeaders>), Refusal> {
        let (here, service) = (&place.client, &place.entry.service);
        let secret = client.secret.expose_secret();
        let is_own = subject
            .key
            .as_ref()
            .is_none_or(|key| key.consumer.id == here.consumer.id);
        if let Party::Other(foreign) = &subject.party {
            let is_granted = |scope| place.entry.catalogue.satisfied(&foreign.scopes, scope);
            if !required.iter().all(is_granted) {
                return Err(Refusal::invalid_scope(
                    "the subject token does not have every scope that was asked for",
                ));
            }
        }
        let is_same_key = subject
            .key
            .as_ref()
            .is_none_or(|key| key.key.key_id == here.key.key_id);
        if !is_same_key {
            self.charge(secret, service.slug.as_str(), origin).await?;
        }
        let request = Request {
            environment: AskedEnvironment::Is(Cow::Borrowed(&here.key.owner.environment)),
            required_scopes: required.into(),
            any_scopes: None,
            ip: if is_own { Some(origin.ip) } else { ip },
            cost: 1,
        };
        let answer = self
            .validation
            .validate(
                subject.party.credential(service, secret),
                &here.tenant.id,
                service.slug.as_str(),
                &request,
                asking,
            )
            .await
            .inspect_err(|_undecided| self.validation.note_undecided())?;
        let limits = match (&answer.subject, &answer.spent) {
            (Some(subject), Some(spent)) => LimitHeaders::of(subject, spent),
            (_, _) => None,
        };
        let outcome = answer.decision.outcome;
        let Some(granted) = answer.subject.filter(|_| outcome.is_valid()) else {
            return Err(Role::Subject.refused(outcome).limited(limits));
        };
        let granted = match &subject.party {
            Party::Other(foreign) => granted.narrowed_to(&foreign.scopes),
            Party::Key(_) | Party::Own(_) => granted.narrowed_to(here.scopes()),
        };
        Ok((granted, limits))
    }

    /// What the client itself is charged for an exchange of what is made from another key.
    async fn charge(
        &self,
        secret: &str,
        service: &str,
        origin: &Origin<'_>,
    ) -> Result<(), Refusal> {
        let asked = Asked::Service(service);
        match self.validation.holder(secret, Some(origin.ip), asked).await {
            Ok(_) => Ok(()),
            Err(AuthFailure::Invalid | AuthFailure::NoManagementKey(_)) => {
                Err(Refusal::unknown_client())
            }
            Err(AuthFailure::Refused(outcome)) => {
                Err(of_outcome(outcome).unwrap_or_else(Refusal::unknown_client))
            }
            Err(AuthFailure::Limited(outcome, limits)) => {
                let refusal = of_outcome(outcome).unwrap_or_else(Refusal::unknown_client);
                Err(refusal.limited(Some(limits)))
            }
            Err(AuthFailure::Failed(failure)) => Err(failure.into()),
        }
    }

    /// Step 6.
    fn exchanged(
        &self,
        place: &Place,
        granted: &Subject,
        scopes: &[Scope],
        (id, sub, delegation): (&TokenId, &str, &Delegation),
        bonds: &Bonds,
        end: Option<Timestamp>,
    ) -> Result<Granted, Refusal> {
        let (here, settings) = (&place.client, &place.entry.service.settings.tokens);
        let life = Life::new(self.clock.now(), settings.ttl, end)
            .ok_or_else(|| Refusal::invalid_request("what is to be exchanged has expired"))?;
        let scope = scopes
            .iter()
            .map(Scope::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        let claims = Claims {
            iss: self.mint.issuer(),
            sub,
            aud: &place.audience,
            client_id: here.consumer.id.as_str(),
            scope: &scope,
            iat: life.iat,
            exp: life.exp,
            jti: id.as_str(),
            delegation,
            keystead: Provenance::of(granted).bound(Some(bonds)),
            embedded: Inner::default(),
            more: asked_for(&settings.claims, granted),
        };
        Ok(Granted {
            token: self.signed(&claims)?,
            expires_in_seconds: life.seconds(),
            scope,
            issued_token_type: None,
            limits: None,
        })
    }
}

/// What the new token dies with beside the key that it is made from.
fn bonds(place: &Place, subject: &Known<'_>, actor: Option<&Known<'_>>) -> Result<Bonds, Refusal> {
    let client = &place.client.key;
    let made_from = subject.key.as_ref().map_or(client, |key| &key.key);
    let is_by_another = made_from.secret_id != client.secret_id;
    let acting = actor.and_then(|actor| actor.key.as_ref());
    let others = [Some(subject), actor].into_iter().flatten();
    let others = others
        .flat_map(|known| known.party.secrets())
        .chain(acting.map(|acting| &acting.key.secret_id))
        .filter(|secret| ![&made_from.secret_id, &client.secret_id].contains(secret));
    let client = is_by_another.then_some((&client.key_id, &client.secret_id));
    Bonds::new(client, others).ok_or_else(|| {
        Refusal::invalid_request("too many have exchanged it, or acted, one after the other")
    })
}

/// What is recorded beside the new token: the ids of those that it was exchanged for.
fn made_of(subject: &Known<'_>, actor: Option<&Known<'_>>) -> BTreeMap<String, String> {
    let actor = actor.and_then(|actor| actor.party.id());
    [
        ("subject_token", subject.party.id()),
        ("actor_token", actor),
    ]
    .into_iter()
    .filter_map(|(name, id)| Some((name.to_owned(), id?.to_owned())))
    .collect()
}

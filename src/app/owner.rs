//! The owner key: the first credential there is, and the way back in when all others are lost.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use crate::audit::{Actor, Attribution, TenantRef};
use crate::consumers::body::CreateConsumer;
use crate::db::Conn;
use crate::error::{Conflict, Error};
use crate::idempotency::{Claim, Idempotent};
use crate::keys::issue::{NewGrant, NewKey};
use crate::keys::secret::ApiKey;
use crate::keys::service::By;
use crate::limits::RateLimits;
use crate::metadata::Metadata;
use crate::rights::{self, Rights};
use crate::scope::Scope;
use crate::text::{Name, Slug};
use crate::time::Span;

use super::App;
use super::start::{StartError, hostname, system};

/// The consumer that holds owner keys.
const CONSUMER: &str = "keystead-owner";

/// So many of them may have been disabled or deleted.
const HOLDERS_MAX: u32 = 100;

/// How long the first one lives.
const FIRST_TTL: Span = Span::hours(24);

/// On the first start: makes an owner key, unless people can already be owners. Of several nodes
/// one does.
pub(super) async fn bootstrap(app: &App, tenant: TenantRef) -> Result<(), StartError> {
    if app.people.can_be_owner() || any_key(app, &tenant).await? {
        return Ok(());
    }
    // Two nodes that start together make the same claim: one of them makes the key.
    let claim = Claim::new(&tenant, "system", ("START", "owner key"), "first", [0; 32]);
    let Some(api_key) = issue(app, tenant, Actor::System, FIRST_TTL, Some(claim)).await? else {
        return Ok(());
    };
    let path = app.config.data_dir.join("owner.key");
    write_private(&path, api_key.expose_secret()).map_err(|error| {
        StartError::Wrong(format!(
            "data_dir does not take {}: {error}",
            path.display()
        ))
    })?;
    tracing::info!(path = %path.display(), "made the first owner key, good for 24h");
    let mut terminal = io::stderr();
    if terminal.is_terminal() {
        // As one piece, so that no line of the log comes between.
        let shown = zeroize::Zeroizing::new(format!(
            "\n  The first owner key, shown once and good for 24h (also in {}):\n\n    {}\n\n",
            path.display(),
            api_key.expose_secret(),
        ));
        let _a_closed_terminal_misses_it = terminal.write_all(shown.as_bytes());
    }
    Ok(())
}

/// Makes an owner key from database and master key alone.
pub async fn make(app: &App, ttl: Span) -> Result<ApiKey, StartError> {
    let tenant = app
        .tenants
        .ensure_default(&app.clock, &app.entropy)
        .await?
        .to_ref();
    app.load_peppers().await?;
    let actor = operator();
    match issue(app, tenant, actor, ttl, None).await? {
        Some(api_key) => Ok(api_key),
        None => Err(StartError::Away("another made one just now".to_owned())),
    }
}

/// Who types at this machine, as the system knows it: a variable could say anything.
pub fn operator() -> Actor {
    let uid = rustix::process::getuid().as_raw();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    Actor::Cli {
        user: user_of(uid, &users).map_or_else(|| format!("uid {uid}"), str::to_owned),
        host: hostname(),
    }
}

/// passwd(5): name, password, uid, and more, between colons.
fn user_of(uid: u32, users: &str) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

async fn any_key(app: &App, tenant: &TenantRef) -> Result<bool, StartError> {
    let (tenant, now) = (tenant.id.clone(), app.clock.now());
    let all = crate::keys::store::KeyFilter::default();
    let count = app
        .db
        .read(async move |conn: &mut Conn| -> crate::db::Result<i64> {
            crate::keys::store::count(conn, &tenant, &all, now).await
        })
        .await?;
    Ok(count > 0)
}

/// `None` when the claim was made before.
async fn issue(
    app: &App,
    tenant: TenantRef,
    actor: Actor,
    ttl: Span,
    claim: Option<Claim>,
) -> Result<Option<ApiKey>, StartError> {
    let wrong = |detail: &'static str| StartError::Wrong(detail.to_owned());
    let at = system(tenant, actor);
    let consumer = holder(app, &at).await?;
    let new = NewKey {
        name: Name::parse("owner key").map_err(wrong)?,
        consumer: consumer.as_str().to_owned(),
        environment: None,
        grants: vec![NewGrant {
            service: rights::SERVICE.to_owned(),
            scopes: vec![Scope::parse("*").map_err(wrong)?],
            rate_limits: None,
        }],
        not_before: None,
        ttl: Some(ttl),
        expires_at: None,
        rate_limits: RateLimits::default(),
        quota: None,
        allowed_ips: None,
        metadata: Metadata::default(),
        tags: Vec::new(),
        external_id: None,
        reason: None,
    };
    let by = By {
        rights: Rights::all(),
        at,
    };
    match app.keys.issue(by, new, claim).await? {
        Idempotent::Fresh(issued) => Ok(Some(issued.api_key)),
        Idempotent::Replayed(_) => Ok(None),
    }
}

/// The consumer that holds owner keys: the first that is there and active, or can be made. One that was
/// disabled stays so, with the keys that it holds, and one that was deleted has a successor, for slugs
/// are never used again.
async fn holder(app: &App, at: &Attribution) -> Result<Slug, StartError> {
    let wrong = |detail: &'static str| StartError::Wrong(detail.to_owned());
    for number in 1..=HOLDERS_MAX {
        let slug = match number {
            1 => CONSUMER.to_owned(),
            _ => format!("{CONSUMER}-{number}"),
        };
        let slug = Slug::parse(&slug).map_err(wrong)?;
        let consumer = CreateConsumer {
            slug: slug.clone(),
            name: Some(Name::parse("Owners of this installation").map_err(wrong)?),
            external_id: None,
            rate_limits: RateLimits::default(),
            quota: None,
            metadata: Metadata::default(),
            reason: None,
        };
        let made = app
            .consumers
            .create(at.clone(), Rights::all(), None, consumer)
            .await;
        match made {
            Ok(_) => return Ok(slug),
            Err(Error::Conflict {
                conflict: Conflict::SlugTaken,
                ..
            }) => {}
            Err(error) => return Err(error.into()),
        }
        let there = app
            .consumers
            .read(&at.tenant, &Rights::all(), slug.to_string())
            .await;
        match there {
            Ok(consumer) if consumer.disabled_at.is_none() => return Ok(slug),
            Ok(_) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(wrong(
        "every consumer for owner keys is disabled or deleted",
    ))
}

/// Replaces the file as a whole, readable by its owner alone.
fn write_private(path: &PathBuf, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("key.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_number() {
        let users = "root:x:0:0::/root:/bin/sh\nbroken\nada:x:1000:1000:Ada:/home/ada:/bin/sh\n";
        assert_eq!(user_of(1000, users), Some("ada"));
        assert_eq!(user_of(0, users), Some("root"));
        assert_eq!(user_of(7, users), None);
    }
}

//! Fills a database with keys for `scripts/bench`: copies of one key that was issued, each with an id,
//! a lookup id and a secret of its own, as valid as any.
//!
//! `fill <id of the key> <how many> <file for the plaintexts>`, with the settings of the server in
//! the environment. The server must be stopped: it is told of nothing, and no audit trail is written.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use futures_util::future::try_join_all;
use keystead::app::App;
use keystead::clock::Clock;
use keystead::config::{Config, Sources};
use keystead::db::{self, Conn};
use keystead::entropy::Entropy;
use keystead::id::{KeyId, SecretId};
use keystead::keys::key::Key;
use keystead::keys::pepper::PepperRing;
use keystead::keys::secret::{ApiKey, LookupId};
use keystead::keys::store::{self, NewSecret};
use keystead::keys::verifier::Verifier;
use keystead::tenants;

/// So many are inserted in one transaction, which has two seconds.
const TOGETHER: usize = 250;

/// So many verifiers are waited for at once: fewer than the queue takes.
const VERIFIERS: usize = 32;

type Minted = (Key, ApiKey, Verifier);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(id), Some(count), Some(file)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(anyhow!("usage: fill <id of a key> <count> <file>"));
    };
    let sources = Sources {
        variables: std::env::vars_os().collect(),
        ..Sources::default()
    };
    let config = Config::load(&sources)?;
    let _lock = config
        .lock_data_dir()
        .map_err(|error| anyhow!("the server must be stopped: {error}"))?;
    let master = config.master_keys()?;
    let app =
        App::build(config, master, Clock::System, Entropy::System).map_err(|line| anyhow!(line))?;
    tokio::runtime::Runtime::new()?.block_on(fill(&app, &id, count.parse()?, &file))
}

async fn fill(app: &App, id: &str, count: usize, file: &str) -> anyhow::Result<()> {
    let (template, ring) = template(app, id.to_owned()).await?;
    let current = ring.current().context("there is no current pepper")?;
    let mut plaintexts = BufWriter::new(File::create(file)?);
    let mut left = count;
    while left > 0 {
        let minted = mint(app, &template, left.min(TOGETHER)).await?;
        left -= minted.len();
        for (_, api_key, _) in &minted {
            writeln!(plaintexts, "{}", api_key.expose_secret())?;
        }
        let mut keys = Vec::with_capacity(minted.len());
        let mut secrets = Vec::with_capacity(minted.len());
        for (key, api_key, verifier) in minted {
            let fingerprint = ring
                .fingerprint_under(current, &api_key)
                .context("the current pepper cannot be computed")?;
            secrets.push(NewSecret {
                id: SecretId::new(&app.clock, &app.entropy),
                key_id: key.id.clone(),
                fingerprint,
                pepper_version: current,
                verifier: Some(verifier.as_str().to_owned()),
                created_at: key.created_at,
                valid_until: None,
            });
            keys.push(key);
        }
        let written = async move |conn: &mut Conn| {
            store::insert(conn, &keys).await?;
            store::insert_secrets(conn, &secrets).await
        };
        app.db.write(written).await?;
    }
    plaintexts.flush()?;
    Ok(())
}

async fn template(app: &App, id: String) -> anyhow::Result<(Key, Arc<PepperRing>)> {
    let peppers = Arc::clone(&app.peppers);
    let (found, ring) = app
        .db
        .read(async move |conn: &mut Conn| -> db::Result<_> {
            let ring = peppers.reload(conn).await?;
            let Some(tenant) = tenants::store::find(conn, tenants::DEFAULT).await? else {
                return Ok((None, ring));
            };
            Ok((store::find(conn, &tenant.id, &id).await?, ring))
        })
        .await?;
    Ok((
        found.context("there is no such key in the tenant default")?,
        ring,
    ))
}

async fn mint(app: &App, template: &Key, count: usize) -> anyhow::Result<Vec<Minted>> {
    let mut minted = Vec::with_capacity(count);
    while minted.len() < count {
        let some = (0..VERIFIERS.min(count - minted.len())).map(|_| one(app, template));
        minted.extend(try_join_all(some).await?);
    }
    Ok(minted)
}

async fn one(app: &App, template: &Key) -> anyhow::Result<Minted> {
    let lookup_id = LookupId::new(&app.entropy);
    let api_key = ApiKey::generate(
        &template.prefix,
        &template.environment,
        &lookup_id,
        &app.entropy,
    );
    let verifier = app.hasher.hash(&api_key).await?;
    let key = Key {
        id: KeyId::new(&app.clock, &app.entropy),
        lookup_id,
        ..template.clone()
    };
    Ok((key, api_key, verifier))
}

//! `keystead pepper`: the keys under which secrets are looked up, and what to do when one is lost.

use std::fmt::Write as _;
use std::time::Duration;

use super::audit::show_unknown_keys;
use super::maintenance::{Maintenance, wait_for};
use super::run::print;
use super::{Failure, PepperCommand};
use crate::audit::{Chains, Change};
use crate::config::Sources;
use crate::db::Conn;
use crate::error;
use crate::keys::pepper::{self, PepperState, store};
use crate::time::Span;

/// Beyond the time that a new version is announced before it becomes current.
const PATIENCE: Span = Span::seconds(30);

pub(super) fn run(command: PepperCommand, sources: &Sources) -> Result<(), Failure> {
    let maintenance = Maintenance::open(sources)?;
    wait_for(async {
        match command {
            PepperCommand::Rotate { wait, reason } => {
                rotate(&maintenance, wait, reason.as_deref()).await
            }
            PepperCommand::Status => status(&maintenance).await,
            PepperCommand::Retire { version, reason } => {
                retire(&maintenance, version, reason.as_deref()).await
            }
            PepperCommand::Lost { reason } => lost(&maintenance, &reason).await,
        }
    })?
}

async fn rotate(at: &Maintenance, wait: bool, reason: Option<&str>) -> Result<(), Failure> {
    at.require_its_master_keys().await?;
    let master = at.master.clone();
    let next = at
        .audit
        .change(
            at.attribution(reason).await?,
            async move |change: &mut Change| store::rotate_begin(change, &master).await,
        )
        .await?;
    print(&format!(
        "version {} becomes current at {}\n",
        next.version, next.current_from
    ))?;
    if !wait {
        return Ok(());
    }
    loop {
        let now = at.clock.now();
        at.db
            .write(async move |conn: &mut Conn| store::promote_due(conn, now).await)
            .await?;
        let versions = at.pepper_versions().await?;
        if versions
            .iter()
            .any(|row| row.version == next.version && row.state == PepperState::Current)
        {
            return print(&format!("version {} is current\n", next.version));
        }
        if now > next.current_from.plus(PATIENCE) {
            return Err(Failure::Failed(format!(
                "version {} did not become current in time",
                next.version
            )));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn status(at: &Maintenance) -> Result<(), Failure> {
    let now = at.clock.now();
    let versions = at
        .db
        .read(async move |conn: &mut Conn| store::progress(conn, now).await)
        .await?;
    let mut text = String::from("version  state    current from              secrets  valid\n");
    for row in versions {
        // Infallible for a String.
        let _infallible = writeln!(
            text,
            "{:<7}  {:<7}  {}  {:<7}  {}",
            row.version, row.state, row.current_from, row.secrets, row.live
        );
    }
    print(&text)
}

async fn retire(at: &Maintenance, version: i32, reason: Option<&str>) -> Result<(), Failure> {
    at.require_its_master_keys().await?;
    let secrets = at
        .audit
        .change(
            at.attribution(reason).await?,
            async move |change: &mut Change| store::give_up_old(change, version).await,
        )
        .await?;
    print(&format!(
        "version {version} has ended; {secrets} secrets are proved by their verifier at their next \
         use\n"
    ))
}

/// The heads of the audit chains were MACed under the lost key too, so they are sealed anew first;
/// only if a key is lost indeed, for a reseal accepts whatever it finds.
async fn lost(at: &Maintenance, reason: &str) -> Result<(), Failure> {
    if pepper::verify_checks(&at.pepper_versions().await?, &at.master).is_ok() {
        return print("nothing is lost: every version can be computed\n");
    }
    let by = at.attribution(Some(reason)).await?;
    for report in at.audit.reseal(&Chains::All, &by).await? {
        print(&format!("{report}\n"))?;
    }
    show_unknown_keys(at).await?;
    let master = at.master.clone();
    let lost = at
        .audit
        .change(by, async move |change: &mut Change| -> error::Result<_> {
            store::lost(change, &master).await
        })
        .await?;
    let given_up: Vec<_> = lost.versions.iter().map(ToString::to_string).collect();
    print(&format!(
        "gave up: {}; current: {}; secrets that nothing proves any more: {}\n",
        given_up.join(", "),
        lost.current,
        lost.unprovable
    ))
}

//! `keystead signing-key`: the keys that tokens are signed with.

use std::fmt::Write as _;

use super::maintenance::{Maintenance, wait_for};
use super::run::print;
use super::{Failure, SigningKeyCommand};
use crate::config::Sources;
use crate::entropy::Entropy;
use crate::oauth::Keyring;
use crate::oauth::keyring::Rotation;

pub(super) fn run(command: SigningKeyCommand, sources: &Sources) -> Result<(), Failure> {
    let maintenance = Maintenance::open(sources)?;
    wait_for(async {
        match command {
            SigningKeyCommand::Rotate {
                now,
                compromised,
                reason,
            } => {
                let how = match (compromised, now) {
                    (true, _) => Rotation::Compromised,
                    (false, true) => Rotation::Now,
                    (false, false) => Rotation::Announced,
                };
                rotate(&maintenance, how, reason.as_deref()).await
            }
            SigningKeyCommand::Status => status(&maintenance).await,
        }
    })?
}

fn keyring(at: &Maintenance) -> Keyring {
    Keyring::new(
        at.db.clone(),
        at.audit.clone(),
        at.clock.clone(),
        Entropy::System,
        at.master.clone(),
        at.config.oauth.clone(),
    )
}

async fn rotate(at: &Maintenance, how: Rotation, reason: Option<&str>) -> Result<(), Failure> {
    at.require_its_master_keys().await?;
    let by = at.attribution(reason).await?;
    let made = keyring(at).rotate(by, how).await?;
    print(&format!(
        "{} ({}) signs from {}\n",
        made.kid, made.algorithm, made.active_from
    ))
}

async fn status(at: &Maintenance) -> Result<(), Failure> {
    let ring = keyring(at).reload().await?;
    let now = at.clock.now();
    let mut text = String::from("state    algorithm  signs from                key\n");
    for held in ring.iter() {
        let sealed = match held.key {
            Some(_) => "",
            None => "  (cannot be opened with the master keys listed)",
        };
        // Infallible for a String.
        let _infallible = writeln!(
            text,
            "{:<7}  {:<9}  {}  {}{sealed}",
            held.state(now).as_str(),
            held.algorithm,
            held.active_from,
            held.kid
        );
    }
    print(&text)
}

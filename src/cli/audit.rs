//! `keystead audit`: is the trail whole? And what is signed of it, and cut off it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::maintenance::{Maintenance, wait_for};
use super::run::print;
use super::{AuditCommand, Failure};
use crate::audit::cut::EndedEarly;
use crate::audit::outside::{self, Found};
use crate::audit::signing::Statement;
use crate::audit::verify::verify_against;
use crate::audit::{Attribution, Chains, Report, offline};
use crate::config::Sources;
use crate::telemetry::escape;
use crate::usage::proof::{self, HoursReport};

pub(super) fn run(command: AuditCommand, sources: &Sources) -> Result<(), Failure> {
    if let AuditCommand::Verify {
        export: Some(export),
        keys: Some(keys),
        checkpoints,
        json: _,
        tenant: _,
    } = &command
    {
        return verify_export(export, keys, checkpoints);
    }
    let maintenance = Maintenance::open(sources)?;
    wait_for(async {
        match command {
            AuditCommand::Verify {
                tenant,
                json,
                checkpoints,
                export: _,
                keys: _,
            } => {
                let mut given = Given::read(&checkpoints)?;
                given.found.extend(own_files(&maintenance)?);
                let chains = chains(&maintenance, tenant).await?;
                let (db, master) = (&maintenance.db, &maintenance.master);
                let reports = verify_against(db, master, &chains, &given.found).await?;
                show(&reports, json)?;
                let hours = proof::verify(db, maintenance.usage_db()?.as_ref(), &chains).await?;
                show_hours(&hours, json)?;
                match reports.iter().filter(|report| !report.valid).count() {
                    0 if hours.iter().any(|report| !report.valid) => Err(Failure::Failed(
                        "counts of uses are not what was sealed".to_owned(),
                    )),
                    0 => given.require_all(),
                    1 => Err(Failure::Failed("a chain does not verify".to_owned())),
                    bad => Err(Failure::Failed(format!("{bad} chains do not verify"))),
                }
            }
            AuditCommand::Checkpoint { tenant } => {
                begin_key(&maintenance).await?;
                let chains = chains(&maintenance, tenant).await?;
                show_statements(&maintenance.audit.checkpoint_all(&chains).await?)
            }
            AuditCommand::Cut {
                before,
                tenant,
                reason,
            } => {
                let by = begin_key(&maintenance).await?;
                let reason = maintenance.attribution(Some(&reason)).await?.reason;
                let by = Attribution { reason, ..by };
                let chains = chains(&maintenance, tenant).await?;
                match maintenance.audit.cut(&chains, before, &by).await {
                    Ok(statements) => show_statements(&statements),
                    Err(EndedEarly { statements, error }) => {
                        show_statements(&statements)?;
                        Err(error.into())
                    }
                }
            }
            AuditCommand::Reseal {
                tenant,
                checkpoints,
                adopt_key,
                reason,
            } => {
                let by = maintenance.attribution(Some(&reason)).await?;
                require_unknown(&maintenance, &adopt_key).await?;
                let mut given = Given::read(&checkpoints)?;
                given.require_all()?;
                given.found.extend(own_files(&maintenance)?);
                let chains = chains(&maintenance, tenant).await?;
                let reports = maintenance
                    .audit
                    .reseal_against(&chains, &by, &given.found)
                    .await?;
                show(&reports, false)?;
                for kid in maintenance.audit.adopt_keys(by, &adopt_key).await? {
                    print(&format!(
                        "audit key {kid}: adopted, what it signed counts\n"
                    ))?;
                }
                show_unknown_keys(&maintenance).await
            }
        }
    })?
}

/// What is to be adopted must be there, before anything is done.
async fn require_unknown(maintenance: &Maintenance, kids: &[String]) -> Result<(), Failure> {
    let unknown = maintenance.audit.unknown_keys().await?;
    let is_unknown = |kid: &&String| unknown.iter().any(|key| key.public.kid() == **kid);
    match kids.iter().find(|kid| !is_unknown(kid)) {
        None => Ok(()),
        Some(kid) => Err(Failure::Usage(format!(
            "--adopt-key {kid}: the database has no such audit key that is not known already"
        ))),
    }
}

/// Names the audit keys that nothing vouches for, and how one is adopted.
pub(super) async fn show_unknown_keys(maintenance: &Maintenance) -> Result<(), Failure> {
    let mut text = String::new();
    for key in maintenance.audit.unknown_keys().await? {
        let until = key.until.map_or("now".to_owned(), |at| at.to_string());
        // Infallible for a String.
        let _infallible = writeln!(
            text,
            "audit key {kid}, from {from} until {until}: no listed master key vouches for it, so what \
             it signed proves nothing\n  if it is in your copy of /v1/audit/keys: \
             keystead audit reseal --adopt-key {kid} --reason \"...\"",
            kid = key.public.kid(),
            from = key.from,
        );
    }
    print(&text)
}

/// The first master key may be one that no server has started with.
async fn begin_key(maintenance: &Maintenance) -> Result<Attribution, Failure> {
    maintenance.require_its_master_keys().await?;
    maintenance.config.create_data_dir()?;
    let by = maintenance.attribution(None).await?;
    maintenance.audit.begin_key(by.clone()).await?;
    Ok(by)
}

fn verify_export(export: &Path, keys: &Path, checkpoints: &[PathBuf]) -> Result<(), Failure> {
    let text = read(keys)?;
    let keys = offline::read_keys(&text)
        .map_err(|what| Failure::Usage(format!("--keys {}: {what}", keys.display())))?;
    let given = Given::read(checkpoints)?;
    let report = offline::verify(export, &given.found, &keys)
        .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", export.display())))?;
    print(&lines(&report.to_string()))?;
    match report.bad {
        0 if report.is_proved() => given.require_all(),
        0 => Err(Failure::Failed(
            "no checkpoint fits, so nothing is proved: take one, and give its file with --checkpoints"
                .to_owned(),
        )),
        _ => Err(Failure::Failed("the export does not verify".to_owned())),
    }
}

/// The files of `--checkpoints`.
struct Given {
    found: Vec<Found>,
    /// The first that holds no checkpoint. It is the wrong one or was emptied: nothing was held against it, which says
    /// nothing of the trail.
    without: Option<PathBuf>,
}

impl Given {
    fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let (mut found, mut without) = (Vec::new(), None);
        for path in paths {
            let these = read_all(std::slice::from_ref(path))?;
            if these.iter().any(|one| one.statement.is_ok()) {
                found.extend(these);
            } else {
                without.get_or_insert_with(|| path.clone());
            }
        }
        Ok(Self { found, without })
    }

    /// # Errors
    /// One of the files holds no checkpoint.
    fn require_all(&self) -> Result<(), Failure> {
        match &self.without {
            None => Ok(()),
            Some(path) => Err(Failure::Usage(format!(
                "--checkpoints {}: holds no checkpoint, as keystead audit checkpoint and GET \
                 /v1/audit/checkpoints give them: nothing was held against it",
                path.display()
            ))),
        }
    }
}

/// What the servers of this machine have written, as far as they have.
fn own_files(maintenance: &Maintenance) -> Result<Vec<Found>, Failure> {
    let mut there = maintenance.config.statement_files();
    there.retain(|path| path.exists());
    read_all(&there)
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        found.extend(outside::read(&path.display().to_string(), &read(path)?));
    }
    Ok(found)
}

/// A byte that is no text makes its line one that proves nothing, and not the others.
fn read(path: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn chains(maintenance: &Maintenance, tenant: Option<String>) -> Result<Chains, Failure> {
    Ok(match tenant {
        Some(slug) => Chains::Of(maintenance.tenant(&slug).await?.id),
        None => Chains::All,
    })
}

fn show_statements(statements: &[Statement]) -> Result<(), Failure> {
    let mut text = String::new();
    for statement in statements {
        text.push_str(&statement.canonical()?);
        text.push('\n');
    }
    print(&text)
}

fn show(reports: &[Report], json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for report in reports {
        let report = if json {
            serde_json::to_string(report)
                .map_err(|error| Failure::Failed(format!("a report has no JSON: {error}")))?
        } else {
            report.to_string()
        };
        text.push_str(&lines(&report));
    }
    print(&text)
}

fn show_hours(reports: &[HoursReport], json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for report in reports.iter().filter(|report| !report.is_empty()) {
        let report = if json {
            serde_json::to_string(report)
                .map_err(|error| Failure::Failed(format!("a report has no JSON: {error}")))?
        } else {
            report.to_string()
        };
        text.push_str(&lines(&report));
    }
    print(&text)
}

/// What was tampered with is shown on a terminal.
fn lines(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines() {
        shown.push_str(&escape(line));
        shown.push('\n');
    }
    shown
}

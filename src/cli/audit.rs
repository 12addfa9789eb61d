//! `keystead audit`: is the trail whole?

use super::maintenance::{Maintenance, wait_for};
use super::run::print;
use super::{AuditCommand, Failure};
use crate::audit::verify::verify;
use crate::audit::{Chains, Report};
use crate::config::Sources;
use crate::telemetry::escape;

pub(super) fn run(command: AuditCommand, sources: &Sources) -> Result<(), Failure> {
    let maintenance = Maintenance::open(sources)?;
    wait_for(async {
        match command {
            AuditCommand::Verify { tenant, json } => {
                let chains = chains(&maintenance, tenant).await?;
                let reports = verify(&maintenance.db, &maintenance.master, &chains).await?;
                show(&reports, json)?;
                match reports.iter().filter(|report| !report.valid).count() {
                    0 => Ok(()),
                    1 => Err(Failure::Failed("a chain does not verify".to_owned())),
                    bad => Err(Failure::Failed(format!("{bad} chains do not verify"))),
                }
            }
            AuditCommand::Reseal { tenant, reason } => {
                let by = maintenance.attribution(Some(&reason)).await?;
                let chains = chains(&maintenance, tenant).await?;
                let found = maintenance.audit.reseal(&chains, &by).await?;
                show(&found, false)
            }
        }
    })?
}

async fn chains(maintenance: &Maintenance, tenant: Option<String>) -> Result<Chains, Failure> {
    Ok(match tenant {
        Some(slug) => Chains::Of(maintenance.tenant(&slug).await?.id),
        None => Chains::All,
    })
}

fn show(reports: &[Report], json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for report in reports {
        let line = if json {
            serde_json::to_string(report)
                .map_err(|error| Failure::Failed(format!("a report has no JSON: {error}")))?
        } else {
            report.to_string()
        };
        // What was tampered with is shown on a terminal.
        for line in line.lines() {
            text.push_str(&escape(line));
            text.push('\n');
        }
    }
    print(&text)
}

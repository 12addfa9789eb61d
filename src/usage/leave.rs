//! What is done with a batch when the ledger has it, before it leaves the journal: its events are copied
//! into the file for a SIEM, and what may be an attack is told.

use super::file::EventFile;
use super::ledger::Ledger;
use super::record::{Batch, Record};
use super::store::events::{self, BatchPage};
use super::watch::{self, Watch};
use crate::db::{self, Conn};

/// Who is told of what the ledger has.
#[derive(Debug)]
pub struct Outlets {
    pub file: Option<EventFile>,
    pub watch: Watch,
}

/// What is left of a batch while the ledger takes it.
#[derive(Debug)]
pub(super) struct Leaving {
    node: String,
    number: i64,
    /// Whose events it may hold, each once.
    tenants: Vec<String>,
    /// What was refused, and how often.
    refused: Vec<(Record, u64)>,
}

impl Leaving {
    pub(super) fn of(batch: &Batch) -> Self {
        let mut tenants: Vec<String> = Vec::new();
        for record in &batch.records {
            if !tenants.contains(&record.tenant_id) {
                tenants.push(record.tenant_id.clone());
            }
        }
        Self {
            node: batch.node.clone(),
            number: batch.number,
            tenants,
            refused: watch::refused(batch),
        }
    }
}

impl Ledger {
    /// What is copied is what stands in the ledger, whether it was stored now or before.
    ///
    /// # Errors
    /// The ledger's, which cannot be read: then the batches are sent again.
    pub(super) async fn leave(&self, batches: Vec<Leaving>) -> db::Result<()> {
        let Some(outlets) = self.0.outlets.get() else {
            return Ok(());
        };
        for batch in batches {
            outlets.watch.see(&batch.refused);
            let Some(file) = &outlets.file else {
                continue;
            };
            for tenant_id in batch.tenants {
                let page = BatchPage {
                    tenant_id,
                    node: batch.node.clone(),
                    number: batch.number,
                    after: None,
                };
                self.copy_to_file(file, page).await?;
            }
        }
        Ok(())
    }

    async fn copy_to_file(&self, file: &EventFile, page: BatchPage) -> db::Result<()> {
        let mut page = Some(page);
        while let Some(part) = page {
            let read = async move |conn: &mut Conn| events::of_batch(conn, part).await;
            let (events, next) = self.0.ledger.read(read).await?;
            let file = file.clone();
            let write = tokio::task::spawn_blocking(move || file.write(events));
            write
                .await
                .map_err(|error| db::Error::Unavailable(error.into()))?;
            page = next;
        }
        Ok(())
    }
}

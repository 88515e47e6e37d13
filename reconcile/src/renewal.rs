//! Documents that have become long are begun anew.

use feiqian_protocol::account::{AccountError, Document, actor_id};
use feiqian_protocol::entry::{Actor, DocumentRenewed};
use feiqian_protocol::ids::{AccountId, NodeId};

use crate::core::{Round, StoreError};
use crate::store::accounts;

impl Round<'_> {
    /// Begins a document anew where it has so many changes, or bytes, that it is time.
    pub(crate) fn renew_worn(
        &mut self,
        account: AccountId,
        document: &Document,
        bytes: usize,
    ) -> Result<(), StoreError> {
        if !document.is_worn(bytes, self.state.document_changes_max) {
            return Ok(());
        }
        let epoch = document.epoch()?.checked_add(1).ok_or(AccountError::Shape("epoch"))?;
        let author = actor_id(self.state.identity.institution, NodeId::CENTRE, 1, epoch, account);
        let saved = match document.renewed(epoch, author) {
            Ok(mut renewed) => renewed.save(),
            Err(error) => {
                tracing::warn!(%account, %error, "the document cannot be begun anew");
                return Ok(());
            }
        };
        tracing::debug!(%account, epoch, before = bytes, after = saved.len(), "document begun anew");
        let renewed = DocumentRenewed { account, document: saved.into() };
        self.keep_renewed(&renewed)?;
        self.append(self.state.shard(account), Actor::centre(), renewed)?;
        Ok(())
    }

    /// Keeps a document that was begun anew.
    pub(crate) fn keep_renewed(&mut self, renewed: &DocumentRenewed) -> Result<(), StoreError> {
        let reader = actor_id(self.state.identity.institution, NodeId::CENTRE, 1, 0, renewed.account);
        let mut document = Document::load(&renewed.document, reader)?;
        accounts::update(self.db, renewed.account, &renewed.document, &mut document)?;
        Ok(())
    }
}

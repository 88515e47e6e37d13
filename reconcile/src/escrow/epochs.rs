//! The ends of epochs: asked for, declared by force, and what is left of a closed one.

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, CloseRequest, Closed};
use feiqian_protocol::ids::{Epoch, NodeId};
use feiqian_protocol::money::Fen;

use crate::core::{Round, StoreError};
use crate::store::money;
use crate::store::nodes::{self, NodeState};

impl Round<'_> {
    /// C7, and the common part of C8: all rows of the node's open epoch come home, and the next epoch is open.
    pub(crate) fn close_epoch(&mut self, id: NodeId, head: u64) -> Result<(), StoreError> {
        self.flush()?;
        let epoch = self.epoch(id);
        let (mut out, mut si_out) = (Fen::ZERO, Fen::ZERO);
        // A node that gets no rights and has none ends nothing, however often it says so.
        let is_bare = self.state.nodes.get(&id).is_some_and(|node| {
            !matches!(node.state, NodeState::Open | NodeState::Closing)
                && (node.out, node.si_out) == (Fen::ZERO, Fen::ZERO)
        });
        if is_bare {
            return self.open_next_epoch(id, epoch);
        }
        for (account, wallet) in money::wallets_of_epoch(self.db, id, epoch)? {
            if planted(Canary::ClosedWithoutUnderWay) {
                out -= self.pending(id, account, wallet).0;
            }
            let holding = self.holding(account, wallet)?;
            if let Some(row) = holding.rows.get_mut(&(id, epoch)) {
                out += row.out;
                si_out += row.si_out;
                holding.wallet.free += row.out;
                row.out = Fen::ZERO;
                row.si_out = Fen::ZERO;
            }
            self.state.hand_out.later(account);
        }
        for account in money::close_shares(self.db, id, epoch, self.state.day)? {
            self.state.hand_out.later(account);
        }
        nodes::insert_closing(self.db, id, epoch, head, out, si_out)?;
        self.open_next_epoch(id, epoch)?;
        // The node begins its next epoch with nothing.
        self.state.sweep.start(false);
        Ok(())
    }

    fn open_next_epoch(&mut self, id: NodeId, epoch: Epoch) -> Result<(), StoreError> {
        if let Some(pending) = self.state.pending.get_mut(&id) {
            pending.clear();
        }
        if let Some(node) = self.state.nodes.get_mut(&id) {
            node.epoch = epoch.next();
            if node.state == NodeState::Closing {
                node.state = NodeState::Closed;
            }
            self.touched_nodes.insert(id);
        }
        self.forget_recalls(id);
        Ok(())
    }

    /// C7: asks a node to end its epoch; nothing is granted to it until it has.
    pub(crate) fn request_close(&mut self, id: NodeId) -> Result<(), StoreError> {
        let epoch = self.epoch(id);
        if let Some(node) = self.state.nodes.get_mut(&id)
            && node.state == NodeState::Open
        {
            node.state = NodeState::Closing;
            node.reason = Some("retired".to_owned());
            self.touched_nodes.insert(id);
            let log = self.state.to_node(id);
            self.append(log, Actor::centre(), CloseRequest { epoch })?;
        }
        Ok(())
    }

    /// C8: closes the node's epoch at what is ingested of its log.
    pub(crate) fn force_close(&mut self, id: NodeId) -> Result<(), StoreError> {
        let epoch = self.epoch(id);
        let declared_head = self.state.log(self.state.own_log(id)).cursor.position;
        self.close_epoch(id, declared_head)?;
        let log = self.state.to_node(id);
        self.append(log, Actor::centre(), Closed { epoch, declared_head })?;
        Ok(())
    }

    /// C9: the end of an epoch that was closed before: nothing more of it can come.
    pub(crate) fn free_residue(&mut self, id: NodeId, epoch: Epoch) -> Result<(), StoreError> {
        self.flush()?;
        for (account, wallet) in money::residues_of_epoch(self.db, id, epoch)? {
            let holding = self.holding(account, wallet)?;
            if let Some(row) = holding.rows.get_mut(&(id, epoch)) {
                holding.wallet.free += row.residue;
                row.residue = Fen::ZERO;
            }
            self.state.hand_out.later(account);
        }
        Ok(())
    }
}

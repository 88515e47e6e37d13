//! Where refused continuations of a node's log go: each box that bears the node's name has a branch of its own.

use feiqian_protocol::chain::Cursor;
use feiqian_protocol::frame::Branch;
use feiqian_protocol::ids::{LogId, NodeId};

use crate::core::{Round, StoreError};
use crate::io::LinkId;
use crate::store::logs::{self, BranchState};

/// Refused continuations of one node that are kept; one more closes the link.
const BRANCHES_MAX: usize = 16;

impl Round<'_> {
    /// The branches of a node, oldest first.
    pub(crate) fn branches_of(&self, node: NodeId) -> Vec<(LogId, BranchState)> {
        let branches = self.state.branches.iter().filter(|(_, branch)| branch.node == node);
        branches.map(|(log, branch)| (*log, *branch)).collect()
    }

    /// Where a continuation is to go that is not the log as ingested: the branch that its box names, else the newest that may
    /// hold it, else a new one. `None` where its Hello alone does not show that it is another one.
    pub(super) fn branch_for(
        &mut self,
        id: LinkId,
        node: NodeId,
        by_hello: bool,
    ) -> Result<Option<Branch>, StoreError> {
        let own = self.state.own_log(node);
        let Some(hello) = self.state.links.get(&id).and_then(|link| link.hello.clone()) else {
            return Ok(None);
        };
        let branches = self.branches_of(node);
        let named = branches.iter().find(|(log, _)| hello.branch == Some(*log));
        if named.is_none() && by_hello {
            let here = logs::hash_at(self.db, own, hello.log.position)?;
            if here.is_none_or(|hash| hash == hello.log.hash) {
                return Ok(None);
            }
        }
        // One that begins beyond a box's log is that of another box.
        let last = branches.last().filter(|(_, branch)| branch.after < hello.log.position);
        match named.or(last) {
            Some((log, branch)) => Ok(Some(self.sends_to(id, *log, branch.after))),
            None => self.branch_of_its_own(id, node),
        }
    }

    /// A branch for what a box sends, which continues none that is there.
    pub(super) fn branch_of_its_own(
        &mut self,
        id: LinkId,
        node: NodeId,
    ) -> Result<Option<Branch>, StoreError> {
        let own = self.state.own_log(node);
        let hello = self.state.links.get(&id).and_then(|link| link.hello.clone());
        // What we countersigned and the node holds is surely common.
        let common = hello.and_then(|hello| hello.countersigned).filter(|signed| {
            signed.log == own && signed.is_signed_by(&self.state.identity.log_key.verifying_key())
        });
        let after = match common {
            Some(signed)
                if logs::hash_at(self.db, own, signed.cursor.position)? == Some(signed.cursor.hash) =>
            {
                signed.cursor
            }
            _ => Cursor::START,
        };
        Ok(self.new_branch(node, after)?.map(|log| self.sends_to(id, log, after.position)))
    }

    fn sends_to(&mut self, id: LinkId, log: LogId, after: u64) -> Branch {
        if let Some(link) = self.state.links.get_mut(&id) {
            link.branch = Some(log);
        }
        Branch { log, after }
    }

    /// A branch that leaves a node's log after a common cursor; `None` where it has too many already.
    pub(crate) fn new_branch(&mut self, node: NodeId, after: Cursor) -> Result<Option<LogId>, StoreError> {
        let branches = self.branches_of(node).len();
        if branches >= BRANCHES_MAX {
            return Ok(None);
        }
        let log = LogId::branch(self.state.identity.institution, node, branches as u32 + 1);
        let branch = BranchState { node, after: after.position, cursor: after };
        logs::put_branch(self.db, log, &branch)?;
        self.state.branches.insert(log, branch);
        Ok(Some(log))
    }
}

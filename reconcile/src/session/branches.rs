//! Where refused continuations of a node's log go: each box that bears the node's name has a branch of its own.

use feiqian_protocol::chain::Cursor;
use feiqian_protocol::frame::{Branch, NodeHello};
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
        if let Some(named) = self.named_branch(id, node) {
            return Ok(Some(named));
        }
        if by_hello {
            let here = logs::hash_at(self.db, own, hello.log.position)?;
            if here.is_none_or(|hash| hash == hello.log.hash) {
                return Ok(None);
            }
        }
        // One that begins beyond a box's log is that of another box.
        let last = self.branches_of(node).pop().filter(|(_, branch)| branch.after < hello.log.position);
        match last {
            Some((log, branch)) => Ok(Some(self.sends_to(id, log, branch.after))),
            None => self.branch_of_its_own(id, node),
        }
    }

    /// The branch that a box says it was told.
    pub(super) fn named_branch(&mut self, id: LinkId, node: NodeId) -> Option<Branch> {
        let log = self.state.links.get(&id)?.hello.as_ref()?.branch?;
        let after = self.state.branches.get(&log).filter(|branch| branch.node == node)?.after;
        Some(self.sends_to(id, log, after))
    }

    /// A branch for what a box sends, which continues none that is there.
    pub(super) fn branch_of_its_own(
        &mut self,
        id: LinkId,
        node: NodeId,
    ) -> Result<Option<Branch>, StoreError> {
        let hello = self.state.links.get(&id).and_then(|link| link.hello.clone());
        let after = self.common_with(node, hello.as_ref())?;
        Ok(self.new_branch(node, after)?.map(|log| self.sends_to(id, log, after.position)))
    }

    /// The last cursor of a node's log that a box of its name surely has as well: what we countersigned and it holds.
    fn common_with(&self, node: NodeId, hello: Option<&NodeHello>) -> Result<Cursor, StoreError> {
        let own = self.state.own_log(node);
        let key = self.state.identity.log_key.verifying_key();
        let signed = hello.and_then(|hello| hello.countersigned);
        match signed.filter(|signed| signed.log == own && signed.is_signed_by(&key)) {
            Some(signed)
                if logs::hash_at(self.db, own, signed.cursor.position)? == Some(signed.cursor.hash) =>
            {
                Ok(signed.cursor)
            }
            _ => Ok(Cursor::START),
        }
    }

    /// While the centre takes back what an old copy of it lacks: the branch that a box was told before, under its name, by which the
    /// streams know what stands in it. A box that has one was refused, whatever else it says.
    pub(crate) fn branch_again(
        &mut self,
        id: LinkId,
        node: NodeId,
        hello: &NodeHello,
    ) -> Result<Option<Branch>, StoreError> {
        let is_branch =
            |log: &LogId| (1..=BRANCHES_MAX as u32).any(|branch| *log == self.branch_log(node, branch));
        if let Some(log) = hello.branch.filter(is_branch)
            && !self.state.branches.contains_key(&log)
        {
            let after = self.common_with(node, Some(hello))?;
            self.put_branch(node, log, after)?;
        }
        Ok(self.named_branch(id, node))
    }

    fn sends_to(&mut self, id: LinkId, log: LogId, after: u64) -> Branch {
        if let Some(link) = self.state.links.get_mut(&id) {
            link.branch = Some(log);
        }
        Branch { log, after }
    }

    /// A branch that leaves a node's log after a common cursor; `None` where it has too many already.
    pub(crate) fn new_branch(&mut self, node: NodeId, after: Cursor) -> Result<Option<LogId>, StoreError> {
        let highest = self.branches_of(node).last().map_or(0, |(log, _)| log.stream);
        if highest as usize >= BRANCHES_MAX {
            return Ok(None);
        }
        let log = self.branch_log(node, highest + 1);
        self.put_branch(node, log, after)?;
        Ok(Some(log))
    }

    fn branch_log(&self, node: NodeId, branch: u32) -> LogId {
        LogId::branch(self.state.identity.institution, node, branch)
    }

    fn put_branch(&mut self, node: NodeId, log: LogId, after: Cursor) -> Result<(), StoreError> {
        let branch = BranchState { node, after: after.position, cursor: after };
        logs::put_branch(self.db, log, &branch)?;
        self.state.branches.insert(log, branch);
        Ok(())
    }
}

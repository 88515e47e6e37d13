//! Buildings come, by enrolments that an operator gives out, and go, when they are retired.

use ed25519_dalek::VerifyingKey;
use feiqian_protocol::chain::unhex;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{Actor, NodeEnrolled};
use feiqian_protocol::ids::{NodeId, NodeName};
use feiqian_protocol::limits::{ENROL_CODE_SECONDS, ENROL_TRIES_MAX};
use feiqian_protocol::pin::PinKey;
use serde_json::json;

use crate::accounts::{no_campus, refused};
use crate::core::{Round, StoreError};
use crate::io::{CommandError, Reply};
use crate::store::nodes::{self, Enrolment, Node, NodeState};
use crate::store::{habits, meta_number};

impl Round<'_> {
    pub(crate) fn create_enrolment(
        &mut self,
        name: NodeName,
        role: Role,
        lookup: &str,
        secret: &str,
    ) -> Result<Reply, StoreError> {
        let (Some(lookup), Some(secret)) = (unhex(lookup), unhex(secret)) else {
            return Ok(refused("enrolment_unknown", "the lookup and the secret must be hexadecimal"));
        };
        if nodes::enrolment(self.db, &lookup)?.is_some() {
            return Ok(refused("enrolment_used", "this code exists already"));
        }
        let expires = self.now.real.plus_ms(ENROL_CODE_SECONDS * 1_000);
        let code = Enrolment { name: name.clone(), role, secret, expires, tries: 0, used: false };
        nodes::put_enrolment(self.db, &lookup, &code)?;
        Ok(Ok(json!({ "name": name, "role": role, "expires_ms": expires })))
    }

    /// A code that may still be used.
    fn valid_enrolment(
        &self,
        lookup: &str,
    ) -> Result<Result<(Vec<u8>, Enrolment), CommandError>, StoreError> {
        let error = |code, message: &str| Ok(Err(CommandError { code, message: message.to_owned() }));
        let Some(lookup) = unhex(lookup) else {
            return error("enrolment_unknown", "the lookup must be hexadecimal");
        };
        let Some(code) = nodes::enrolment(self.db, &lookup)? else {
            return error("enrolment_unknown", "no such enrolment code");
        };
        if code.used {
            return error("enrolment_used", "the enrolment code was used");
        }
        if self.now.real >= code.expires {
            return error("enrolment_expired", "the enrolment code has expired");
        }
        Ok(Ok((lookup, code)))
    }

    pub(crate) fn look_up_enrolment(&mut self, lookup: &str) -> Result<Reply, StoreError> {
        let (lookup, mut code) = match self.valid_enrolment(lookup)? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        if code.tries >= ENROL_TRIES_MAX {
            return Ok(refused("enrolment_used", "the enrolment code was tried too often"));
        }
        code.tries += 1;
        nodes::put_enrolment(self.db, &lookup, &code)?;
        let secret = feiqian_protocol::chain::hex(&code.secret);
        Ok(Ok(json!({ "name": code.name, "role": code.role, "secret": secret })))
    }

    pub(crate) fn enrol(
        &mut self,
        lookup: &str,
        log_key: &str,
        pin_key: Option<PinKey>,
    ) -> Result<Reply, StoreError> {
        let (lookup, mut code) = match self.valid_enrolment(lookup)? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        if self.state.campus.is_none() {
            return Ok(no_campus());
        }
        let key: Option<[u8; 32]> = unhex(log_key).and_then(|bytes| bytes.try_into().ok());
        let Some(log_key) = key.and_then(|key| VerifyingKey::from_bytes(&key).ok()) else {
            return Ok(refused("enrolment_unknown", "the log key is no Ed25519 public key"));
        };
        code.used = true;
        nodes::put_enrolment(self.db, &lookup, &code)?;
        let same_name = self.state.nodes.iter().filter(|(_, node)| node.name == code.name);
        let older =
            same_name.max_by_key(|(_, node)| node.incarnation).map(|(id, node)| (*id, node.incarnation));
        let from = meta_number(self.db, "node_numbers_from")?.unwrap_or(0);
        let highest = self.state.nodes.keys().next_back().map_or(0, |id| id.0);
        let highest = highest.max(u16::try_from(from).unwrap_or(u16::MAX));
        let Some(number) = highest.checked_add(1) else {
            return Ok(refused("enrolment_used", "all node numbers are used"));
        };
        let (id, incarnation) = (NodeId(number), older.map_or(1, |(_, incarnation)| incarnation + 1));
        let node = Node::enrolled(code.name.clone(), code.role, incarnation, log_key);
        let enrolled = NodeEnrolled {
            node: id,
            name: code.name.clone(),
            role: code.role,
            incarnation,
            log_key: log_key.to_bytes(),
        };
        self.state.nodes.insert(id, node);
        self.state.pending.insert(id, Default::default());
        self.touched_nodes.insert(id);
        self.state.means = None;
        // First in the stream for it: whoever holds anything of the stream holds this.
        self.append(self.state.to_node(id), Actor::centre(), enrolled)?;
        if let Some(key) = pin_key {
            self.keep_pin_key(id, key)?;
        }
        if let Some((older, _)) = older {
            self.end_sessions(older, "the node was enrolled anew");
            self.shut_out(older, "enrolled anew", NodeState::Retired)?;
            // It stands where the old one stood.
            habits::move_habits(self.db, older, id)?;
        }
        Ok(Ok(json!({
            "node": id,
            "name": code.name,
            "role": code.role,
            "incarnation": incarnation,
            "institution": self.state.identity.institution,
            "campus": self.state.campus_id(),
        })))
    }

    pub(crate) fn retire(&mut self, name: &NodeName, force: bool) -> Result<Reply, StoreError> {
        let found = self.state.nodes.iter().filter(|(_, node)| node.name == *name).map(|(id, _)| *id).max();
        let Some(id) = found else { return Ok(refused("unknown_node", "no such node")) };
        let epoch = self.epoch(id);
        if force {
            self.shut_out(id, "retired", NodeState::Closed)?;
        } else {
            self.request_close(id)?;
        }
        Ok(Ok(json!({ "node": id, "epoch": epoch })))
    }
}

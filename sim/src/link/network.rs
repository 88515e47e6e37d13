//! Links and time of a [`World`]: both move only when told to.

use anyhow::{Context, Result, bail, ensure};
use feiqian_node::io as node_io;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::core::ReconcileCore;
use feiqian_reconcile::io as centre_io;

use super::wire::Wire;
use super::{Direction, Notice, START, Site, Waiting, World};

impl World {
    /// Connects a building to the centre; an older connection is given up by both ends when the new one comes.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn connect(&mut self, site: usize) -> Result<()> {
        ensure!(self.is_up(site) && self.centre.core.is_some(), "both ends must run");
        self.links += 1;
        let link = self.links;
        self.sites[site].wire = Some(Wire::new(link));
        self.sites[site].believes = Some(link);
        let identity = &self.sites[site].identity;
        let (node, incarnation, expired) = (identity.node, identity.incarnation, self.sites[site].expired);
        self.step_centre(vec![centre_io::Input::LinkUp {
            link: centre_io::LinkId(link),
            node,
            incarnation,
            expired,
        }])?;
        self.step_node(site, vec![node_io::Input::LinkUp(node_io::LinkId(link))])
    }

    /// Breaks a link; everything under way is lost.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn cut(&mut self, site: usize, notice: Notice) -> Result<()> {
        let Some(wire) = self.sites[site].wire.take() else {
            return Ok(());
        };
        if matches!(notice, Notice::Both | Notice::Centre) && self.centre.core.is_some() {
            self.step_centre(vec![centre_io::Input::LinkDown(centre_io::LinkId(wire.link))])?;
        }
        if matches!(notice, Notice::Both | Notice::Node) {
            self.notice(site)?;
        }
        Ok(())
    }

    /// A building learns that its link is gone (its idle timeout).
    ///
    /// # Errors
    /// What the core could not do.
    pub fn notice(&mut self, site: usize) -> Result<()> {
        match self.sites[site].believes.take() {
            Some(link) if self.is_up(site) => {
                self.step_node(site, vec![node_io::Input::LinkDown(node_io::LinkId(link))])
            }
            _ => Ok(()),
        }
    }

    /// Frames that wait for delivery, over all links.
    pub fn waiting(&self) -> Vec<Waiting> {
        let of = |(site, node): (usize, &Site)| {
            node.wire.as_ref().map(|wire| wire.waiting(site)).unwrap_or_default()
        };
        self.sites.iter().enumerate().flat_map(of).collect()
    }

    /// Delivers one frame.
    ///
    /// # Errors
    /// What the receiver could not do.
    pub fn deliver(&mut self, frame: Waiting) -> Result<()> {
        let Some(wire) = &mut self.sites[frame.site].wire else {
            bail!("no link");
        };
        let link = wire.link;
        let bytes = wire.take(frame).context("no such frame")?;
        self.hand_over(frame, link, &bytes)
    }

    /// Delivers a copy of a frame and leaves the frame where it is: it comes twice.
    ///
    /// # Errors
    /// What the receiver could not do.
    pub fn deliver_copy(&mut self, frame: Waiting) -> Result<()> {
        let Some(wire) = &self.sites[frame.site].wire else {
            bail!("no link");
        };
        let bytes = wire.peek(frame).context("no such frame")?.to_vec();
        self.hand_over(frame, wire.link, &bytes)
    }

    /// The frame that waits.
    ///
    /// # Errors
    /// Where there is none.
    pub fn look_at(&self, frame: Waiting) -> Result<Frame> {
        let wire = self.sites[frame.site].wire.as_ref().context("no link")?;
        Ok(Frame::from_bytes(wire.peek(frame).context("no such frame")?)?)
    }

    /// Changes a frame that waits, as whoever sits on the link would.
    ///
    /// # Errors
    /// Where there is none.
    pub fn alter(&mut self, frame: Waiting, change: impl FnOnce(&mut Frame)) -> Result<()> {
        let mut altered = self.look_at(frame)?;
        change(&mut altered);
        let wire = self.sites[frame.site].wire.as_mut().context("no link")?;
        wire.replace(frame, altered.to_bytes());
        Ok(())
    }

    /// Puts a frame behind all others of its lane, as a peer that has made it up would.
    ///
    /// # Errors
    /// Where there is no link.
    pub fn inject(&mut self, site: usize, direction: Direction, frame: &Frame) -> Result<()> {
        self.sites[site].wire.as_mut().context("no link")?.push(direction, frame);
        Ok(())
    }

    /// Delivers whatever `which` names until none of it waits.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn deliver_where(&mut self, which: impl Fn(&Waiting) -> bool) -> Result<()> {
        while let Some(frame) = self.waiting().into_iter().find(&which) {
            self.deliver(frame)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, frame: Waiting, link: u64, bytes: &[u8]) -> Result<()> {
        let decoded = Frame::from_bytes(bytes)?;
        match frame.direction {
            Direction::Up => {
                self.step_centre(vec![centre_io::Input::Frame(centre_io::LinkId(link), decoded)])
            }
            Direction::Down => {
                self.step_node(frame.site, vec![node_io::Input::Frame(node_io::LinkId(link), decoded)])
            }
        }
    }

    /// Delivers everything, in an order that does not depend on anything but the world, until nothing waits.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn deliver_all(&mut self) -> Result<()> {
        while let Some(first) = self.waiting().first() {
            self.deliver(*first)?;
        }
        Ok(())
    }

    /// Milliseconds since the world began.
    pub const fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The wall clock of the centre.
    pub const fn wall(&self) -> Timestamp {
        START.plus_ms(self.now_ms as i64)
    }

    /// Lets time pass; timers ring in order, frames stay where they are.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn advance(&mut self, ms: u64) -> Result<()> {
        let until = self.now_ms + ms;
        while let Some((at, whose)) = self.next_timer().filter(|(at, _)| *at <= until) {
            if at > self.now_ms {
                self.now_ms = at;
                self.steps_at_rest = 0;
            }
            match whose {
                Some(site) => self.step_node(site, vec![node_io::Input::Timer])?,
                None => self.step_centre(vec![centre_io::Input::Timer])?,
            }
        }
        self.now_ms = until;
        self.steps_at_rest = 0;
        Ok(())
    }

    /// Lets time pass in steps, delivering everything between them.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn run(&mut self, ms: u64) -> Result<()> {
        let until = self.now_ms + ms;
        self.deliver_all()?;
        while self.now_ms < until {
            let next = self.next_timer().map_or(until, |(at, _)| at.clamp(self.now_ms + 1, until));
            self.advance(next - self.now_ms)?;
            self.deliver_all()?;
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<(u64, Option<usize>)> {
        let centre = self.centre.core.as_ref().and_then(ReconcileCore::next_timer);
        let centre = centre.map(|at| (at + self.centre.opened_at, None));
        let of = |(index, site): (usize, &Site)| {
            Some((site.core.as_ref()?.next_timer()? + site.opened_at, Some(index)))
        };
        self.sites.iter().enumerate().filter_map(of).chain(centre).min()
    }
}

//! What is in a file, in pages that copies of it share until one of them is written.

use std::sync::Arc;

/// Bytes of a page: those of SQLite, so that most writes to a database replace whole ones.
const PAGE: usize = 4_096;

/// The bytes of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: usize,
    /// Beyond `len` the last one is zero.
    pages: Vec<Arc<[u8; PAGE]>>,
}

impl Content {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Fills `into` from `offset` on, beyond the end with zeros; returns how many bytes were there.
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        let count = self.len.saturating_sub(offset).min(into.len());
        let (mut there, beyond) = into.split_at_mut(count);
        beyond.fill(0);
        let mut at = offset;
        while !there.is_empty() {
            let from = at % PAGE;
            let (piece, after) = there.split_at_mut(there.len().min(PAGE - from));
            piece.copy_from_slice(&self.pages[at / PAGE][from..from + piece.len()]);
            at += piece.len();
            there = after;
        }
        count
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.pages.len() < end.div_ceil(PAGE) {
            self.pages.resize(end.div_ceil(PAGE), Arc::new([0; PAGE]));
        }
        self.len = self.len.max(end);
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let from = at % PAGE;
            let (piece, after) = rest.split_at(rest.len().min(PAGE - from));
            let page = &mut self.pages[at / PAGE];
            match <&[u8; PAGE]>::try_from(piece) {
                Ok(whole) if Arc::get_mut(page).is_none() => *page = Arc::new(*whole),
                _ => Arc::make_mut(page)[from..from + piece.len()].copy_from_slice(piece),
            }
            at += piece.len();
            rest = after;
        }
    }

    /// Makes it shorter; it never gets longer by this.
    pub(super) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        self.pages.truncate(len.div_ceil(PAGE));
        if let Some(last) = self.pages.last_mut().filter(|_| !len.is_multiple_of(PAGE)) {
            Arc::make_mut(last)[len % PAGE..].fill(0);
        }
    }

    /// Turns bits of a byte, where there is one.
    pub(super) fn flip(&mut self, at: usize, mask: u8) {
        if at < self.len {
            Arc::make_mut(&mut self.pages[at / PAGE])[at % PAGE] ^= mask;
        }
    }

    /// Becomes equal to another one that differs from it only in these bytes, and in its length.
    pub(super) fn follow(&mut self, other: &Self, changed: impl IntoIterator<Item = std::ops::Range<usize>>) {
        self.len = other.len;
        self.pages.truncate(other.pages.len());
        self.pages.extend_from_slice(&other.pages[self.pages.len()..]);
        for bytes in changed {
            let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE).min(other.pages.len());
            if let (Some(own), Some(others)) = (self.pages.get_mut(pages.clone()), other.pages.get(pages)) {
                own.clone_from_slice(others);
            }
        }
    }

    /// All of it.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    /// A file as a plain list of bytes does what this one does, and what is followed is equal.
    #[test]
    fn it_is_what_a_list_of_bytes_is() {
        let mut seed = Seed::new(11);
        for _ in 0..200 {
            let (mut plain, mut content) = (Vec::new(), Content::default());
            let (mut durable, mut changed) = (Content::default(), Vec::new());
            for _ in 0..30 {
                let at = seed.index(5 * PAGE);
                match seed.below(8) {
                    0 => {
                        plain.truncate(at);
                        content.truncate(at);
                        changed.push(at..usize::MAX);
                    }
                    1 => {
                        durable.follow(&content, changed.drain(..));
                        assert_eq!(durable.to_bytes(), plain);
                    }
                    2 if at < plain.len() => {
                        plain[at] ^= 4;
                        content.flip(at, 4);
                        durable.flip(at, 4);
                        changed.push(at..at + 1);
                    }
                    _ => {
                        let aligned = seed.chance(1, 2);
                        let (at, len) =
                            if aligned { (at / PAGE * PAGE, PAGE) } else { (at, seed.index(9_000)) };
                        let bytes: Vec<u8> = (0..len).map(|_| seed.draw() as u8).collect();
                        if plain.len() < at + len {
                            plain.resize(at + len, 0);
                        }
                        plain[at..at + len].copy_from_slice(&bytes);
                        content.write(at, &bytes);
                        changed.push(at..at + len);
                    }
                }
                assert_eq!(content.len(), plain.len());
                let mut read = vec![7; 6_000];
                let there = content.read(at, &mut read);
                let expected = plain.get(at..).unwrap_or_default();
                let expected = &expected[..expected.len().min(read.len())];
                assert_eq!((there, &read[..there]), (expected.len(), expected));
                assert!(read[there..].iter().all(|byte| *byte == 0));
            }
        }
    }
}

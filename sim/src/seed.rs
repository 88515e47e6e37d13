//! Chance from a seed: the same seed gives the same run on every machine.

/// A generator (SplitMix64, Steele et al. 2014): small, fast, and good enough to choose faults by.
#[derive(Clone, Debug)]
pub struct Seed(u64);

impl Seed {
    /// Starts a generator.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0 to `bound - 1`; 0 where `bound` is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.draw() % bound }
    }

    /// An index of something with `len` elements; 0 where it has none.
    pub const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `part` of `whole` cases.
    pub const fn chance(&mut self, part: u64, whole: u64) -> bool {
        self.below(whole) < part
    }

    /// One of the elements; `None` where there is none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let index = self.index(from.len());
        from.get(index)
    }

    /// A generator of its own for another purpose, so that more draws there change nothing here.
    pub const fn fork(&mut self) -> Self {
        Self(self.draw())
    }

    /// Brings the elements into random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, elements: &mut [T]) {
        for end in (1..elements.len()).rev() {
            let other = self.index(end + 1);
            elements.swap(end, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_draw_alike_and_bounds_hold() {
        let (mut left, mut right) = (Seed::new(7), Seed::new(7));
        for bound in 1..200 {
            let drawn = left.below(bound);
            assert_eq!(drawn, right.below(bound));
            assert!(drawn < bound);
        }
        assert_eq!(left.below(0), 0);
        let mut cards: Vec<u8> = (0..50).collect();
        left.shuffle(&mut cards);
        assert_ne!(cards, (0..50).collect::<Vec<_>>());
        cards.sort_unstable();
        assert_eq!(cards, (0..50).collect::<Vec<_>>());
    }
}

//! What an automerge chunk would cost to read, found out before automerge reads it.
//!
//! A chunk's columns are run-length encoded and may be deflated
//! ([binary format](https://automerge.org/automerge-binary-format-spec/)), so ten bytes can claim 2^60 operations, or inflate
//! to a thousand times what they are. Here only the runs are added up; whether the chunk makes any sense is automerge's to
//! say.

use std::io::Read;

use flate2::read::DeflateDecoder;

use crate::limits::{CHANGE_OPERATIONS_MAX, DOCUMENT_INFLATED_BYTES_MAX, DOCUMENT_OPERATIONS_MAX};

/// Magic bytes and checksum.
const HEADER_BYTES: usize = 8;

const DOCUMENT: u8 = 0;
const CHANGE: u8 = 1;

/// The chunk is not one that is read, or would cost more than a document or change may.
#[derive(Debug)]
pub(super) struct TooCostly;

/// A whole document, alone.
pub(super) fn check_document(bytes: &[u8]) -> Result<(), TooCostly> {
    let mut reader = contents(bytes, DOCUMENT)?;
    reader.sized_list()?;
    let heads = reader.length()?;
    reader.take(heads.checked_mul(32).ok_or(TooCostly)?)?;
    let columns = [reader.columns()?, reader.columns()?].concat();
    let mut inflated = 0;
    for (spec, length) in columns {
        let data = reader.take(length)?;
        let plain = if spec & DEFLATED == 0 { data.to_vec() } else { inflate(data)? };
        inflated += plain.len();
        if inflated > DOCUMENT_INFLATED_BYTES_MAX {
            return Err(TooCostly);
        }
        check_column(spec, &plain, DOCUMENT_OPERATIONS_MAX)?;
    }
    Ok(())
}

/// One change, alone and not compressed: that is how it is written into an entry.
pub(super) fn check_change(bytes: &[u8]) -> Result<(), TooCostly> {
    let mut reader = contents(bytes, CHANGE)?;
    let dependencies = reader.length()?;
    reader.take(dependencies.checked_mul(32).ok_or(TooCostly)?)?;
    reader.sized()?;
    // Sequence, first operation, time: numbers, of which only the length matters.
    for _ in 0..3 {
        reader.unsigned()?;
    }
    reader.sized()?;
    reader.sized_list()?;
    for (spec, length) in reader.columns()? {
        if spec & DEFLATED != 0 {
            return Err(TooCostly);
        }
        check_column(spec, reader.take(length)?, CHANGE_OPERATIONS_MAX)?;
    }
    Ok(())
}

/// What is in a chunk of this type that is all there is.
fn contents(bytes: &[u8], kind: u8) -> Result<Reader<'_>, TooCostly> {
    let mut reader = Reader(bytes);
    reader.take(HEADER_BYTES)?;
    if reader.take(1)? != [kind] {
        return Err(TooCostly);
    }
    if reader.length()? == reader.0.len() { Ok(reader) } else { Err(TooCostly) }
}

/// The bit of a column's specification that says that it is deflated; the three below it are its type.
const DEFLATED: u64 = 0b1000;

fn inflate(data: &[u8]) -> Result<Vec<u8>, TooCostly> {
    let mut plain = Vec::new();
    DeflateDecoder::new(data)
        .take(DOCUMENT_INFLATED_BYTES_MAX as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|_| TooCostly)?;
    Ok(plain)
}

/// Adds the runs of a column up.
fn check_column(spec: u64, data: &[u8], rows_max: u64) -> Result<(), TooCostly> {
    let mut reader = Reader(data);
    let mut rows = Bounded { sum: 0, most: rows_max };
    match spec & 0b111 {
        // Booleans: the lengths of runs in turn.
        4 => {
            while !reader.0.is_empty() {
                rows.add(reader.unsigned()?)?;
            }
            Ok(())
        }
        // Raw bytes of values.
        7 => Ok(()),
        // Numbers and texts: runs of one value, of nulls, or of values that differ. A group column's values are themselves
        // numbers of rows in other columns.
        kind => {
            let mut grouped = Bounded { sum: 0, most: rows_max };
            while !reader.0.is_empty() {
                let run = reader.signed()?;
                let (count, values) = match run {
                    0 => (reader.unsigned()?, 0),
                    1.. => (run.unsigned_abs(), 1),
                    _ => (run.unsigned_abs(), run.unsigned_abs()),
                };
                rows.add(count)?;
                for _ in 0..values {
                    let value = if kind == 5 { reader.sized().map(|()| 0)? } else { reader.unsigned()? };
                    if kind == 0 {
                        let repeats = if values == 1 { count } else { 1 };
                        grouped.add(value.checked_mul(repeats).ok_or(TooCostly)?)?;
                    }
                }
            }
            Ok(())
        }
    }
}

/// A sum that may not exceed a bound.
struct Bounded {
    sum: u64,
    most: u64,
}

impl Bounded {
    fn add(&mut self, more: u64) -> Result<(), TooCostly> {
        self.sum = self.sum.checked_add(more).filter(|sum| *sum <= self.most).ok_or(TooCostly)?;
        Ok(())
    }
}

/// Bytes that are left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], TooCostly> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TooCostly)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The bytes of one LEB128 number as 64 bits, and how many of them it has.
    fn leb128(&mut self) -> Result<(u64, u32), TooCostly> {
        let (mut number, mut bits) = (0, 0);
        loop {
            let byte = self.take(1)?[0];
            if bits >= u64::BITS {
                return Err(TooCostly);
            }
            number |= u64::from(byte & 0x7f) << bits;
            bits += 7;
            if byte & 0x80 == 0 {
                return Ok((number, bits));
            }
        }
    }

    fn unsigned(&mut self) -> Result<u64, TooCostly> {
        Ok(self.leb128()?.0)
    }

    fn signed(&mut self) -> Result<i64, TooCostly> {
        let (number, bits) = self.leb128()?;
        let unused = u64::BITS.saturating_sub(bits);
        // The sign is the highest bit that was written.
        Ok((number << unused) as i64 >> unused)
    }

    fn length(&mut self) -> Result<usize, TooCostly> {
        usize::try_from(self.unsigned()?).map_err(|_| TooCostly)
    }

    /// Skips bytes after their number.
    fn sized(&mut self) -> Result<(), TooCostly> {
        let length = self.length()?;
        self.take(length).map(drop)
    }

    /// Skips a list of such.
    fn sized_list(&mut self) -> Result<(), TooCostly> {
        for _ in 0..self.unsigned()? {
            self.sized()?;
        }
        Ok(())
    }

    /// Specifications and lengths of columns.
    fn columns(&mut self) -> Result<Vec<(u64, usize)>, TooCostly> {
        let mut columns = Vec::new();
        for _ in 0..self.unsigned()? {
            columns.push((self.unsigned()?, self.length()?));
        }
        Ok(columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsigned(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let low = (number & 0x7f) as u8;
            number >>= 7;
            bytes.push(if number > 0 { low | 0x80 } else { low });
            if number == 0 {
                return bytes;
            }
        }
    }

    fn chunk(kind: u8, contents: &[u8]) -> Vec<u8> {
        [&[0; HEADER_BYTES][..], &[kind], &unsigned(contents.len() as u64), contents].concat()
    }

    /// A change whose only column is this one.
    fn change(spec: u8, column: &[u8]) -> Vec<u8> {
        let before = [0, 1, 7, 1, 1, 0, 0, 0, 1, spec];
        chunk(CHANGE, &[&before[..], &unsigned(column.len() as u64), column].concat())
    }

    fn document(spec: u8, column: &[u8]) -> Vec<u8> {
        let before = [1, 1, 7, 0, 0, 1, spec];
        chunk(DOCUMENT, &[&before[..], &unsigned(column.len() as u64), column].concat())
    }

    #[test]
    fn numbers_are_read_with_their_sign() {
        for (bytes, signed) in
            [(&[0x7f][..], -1), (&[0x40], -64), (&[0x3f], 63), (&[0xc0, 0], 64), (&[0x80, 0x7f], -128)]
        {
            assert_eq!(Reader(bytes).signed().unwrap(), signed, "{bytes:?}");
        }
        let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Reader(&most).unsigned().unwrap(), u64::MAX);
        assert!(Reader(&[0xff; 12]).unsigned().is_err());
        assert!(Reader(&[0x80]).unsigned().is_err());
    }

    #[test]
    fn runs_are_added_up_before_anything_is_made_of_them() {
        let run = |count| [unsigned(count), vec![1]].concat();
        assert!(check_change(&change(2, &run(60))).is_ok());
        let many = |kind: u8, column: Vec<u8>| {
            assert!(check_change(&change(kind, &column)).is_err(), "{kind}");
        };
        many(2, run(CHANGE_OPERATIONS_MAX * 2));
        // Nulls, booleans, and a group that claims as many rows of another column.
        many(2, [vec![0], unsigned(1 << 60)].concat());
        many(4, unsigned(1 << 60));
        many(0, [vec![1], unsigned(1 << 60)].concat());
        many(0, [unsigned(40), unsigned(1 << 20)].concat());
        // Two runs that are small enough each.
        many(2, [run(40), run(CHANGE_OPERATIONS_MAX)].concat());
        // Values that are not there.
        many(5, vec![1, 5, b'a']);
        many(2, vec![0x7e, 1]);
    }

    #[test]
    fn what_inflates_too_far_is_refused() {
        let deflated = |length: usize| {
            let mut bytes = Vec::new();
            flate2::read::DeflateEncoder::new(&vec![0_u8; length][..], flate2::Compression::best())
                .read_to_end(&mut bytes)
                .unwrap();
            bytes
        };
        let raw = 7 | DEFLATED as u8;
        assert!(check_document(&document(raw, &deflated(100_000))).is_ok());
        let bomb = deflated(DOCUMENT_INFLATED_BYTES_MAX + 1);
        assert!(bomb.len() < 4_096);
        assert!(check_document(&document(raw, &bomb)).is_err());
        assert!(check_change(&change(raw, &deflated(100))).is_err(), "a change is never deflated");
        assert!(check_document(&document(raw, &[0xff; 9])).is_err());
    }

    #[test]
    fn a_chunk_is_alone_and_of_the_type_that_is_asked_for() {
        let good = change(2, &[1, 1]);
        assert!(check_change(&good).is_ok());
        assert!(check_document(&good).is_err());
        assert!(check_change(&[&good[..], &good].concat()).is_err());
        for end in 0..good.len() {
            assert!(check_change(&good[..end]).is_err());
        }
        assert!(check_change(&chunk(2, &[0; 20])).is_err(), "nor a compressed one");
    }
}

//! ZIP archives (PKWARE APPNOTE 6.3), as far as PyTorch and NumPy use them: entries that are stored or deflated, with the
//! 64-bit extension.

use std::io::{Read, Seek, SeekFrom, Write};

use flate2::Crc;
use flate2::read::DeflateDecoder;

use crate::{FormatError, bytes_at};

/// How the bytes of an entry lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As they are.
    Stored,
    /// RFC 1951.
    Deflated,
}

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path in the archive.
    pub name: String,
    /// Bytes when unpacked, as the archive says.
    pub size: u64,
    /// How they are packed.
    pub method: Method,
    /// Bytes in the file; they lie within it.
    pub packed: u64,
    crc: u32,
    /// Where its own header is.
    header: u64,
}

/// An archive that is open for reading.
#[derive(Debug)]
pub struct Archive<R> {
    reader: R,
    length: u64,
    entries: Vec<Entry>,
}

/// Largest table of contents that is read.
const MAX_DIRECTORY: u64 = 64 << 20;
/// Fixed part of the record that ends an archive; a comment of up to 65,535 bytes follows.
const END: usize = 22;

impl<R: Read + Seek> Archive<R> {
    /// Reads the table of contents, which is at the end.
    ///
    /// # Errors
    /// [`FormatError`] if there is none, or what it says cannot be.
    pub fn open(mut reader: R) -> Result<Self, FormatError> {
        let length = reader.seek(SeekFrom::End(0))?;
        let (count, size, start) = find_directory(&mut reader, length)?;
        if start.checked_add(size).is_none_or(|end| end > length) || size > MAX_DIRECTORY {
            return Err(FormatError::damaged(
                "the archive's table of contents lies outside of the file",
            ));
        }
        let mut directory = vec![0; size as usize];
        reader.seek(SeekFrom::Start(start))?;
        reader.read_exact(&mut directory)?;
        let mut entries = Vec::new();
        let mut rest = directory.as_slice();
        while entries.len() as u64 != count {
            let (entry, used) = parse_entry(rest, length)?;
            entries.push(entry);
            rest = &rest[used..];
        }
        Ok(Self {
            reader,
            length,
            entries,
        })
    }

    /// What it holds, in its order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of that path.
    pub fn find(&self, name: &str) -> Option<Entry> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .cloned()
    }

    /// Unpacks an entry and checks its checksum (0 means that none was computed). Memory is taken as bytes arrive.
    ///
    /// # Errors
    /// If it is damaged, or unpacks to more than `most` bytes.
    pub fn read(&mut self, entry: &Entry, most: u64) -> Result<Vec<u8>, FormatError> {
        let name = &entry.name;
        if entry.size > most {
            return Err(FormatError::unsupported(format!(
                "`{name}` unpacks to {} bytes, more than the {most} that are read",
                entry.size
            )));
        }
        let start = self.data_start(entry)?;
        self.reader.seek(SeekFrom::Start(start))?;
        let packed = (&mut self.reader).take(entry.packed);
        let mut bytes = Vec::new();
        // One byte more shows that the size was a lie.
        let limit = entry.size + 1;
        match entry.method {
            Method::Stored => packed.take(limit).read_to_end(&mut bytes)?,
            Method::Deflated => DeflateDecoder::new(packed)
                .take(limit)
                .read_to_end(&mut bytes)
                .map_err(|error| FormatError::damaged(format!("`{name}`: {error}")))?,
        };
        if bytes.len() as u64 != entry.size {
            return Err(FormatError::damaged(format!(
                "`{name}` does not unpack to its {} bytes",
                entry.size
            )));
        }
        if entry.crc != 0 && checksum(&bytes) != entry.crc {
            return Err(FormatError::damaged(format!(
                "`{name}` does not have its checksum"
            )));
        }
        Ok(bytes)
    }

    /// `length` bytes of a stored entry, from its byte `from` on.
    ///
    /// # Errors
    /// If they do not lie in it, or it is compressed.
    pub fn read_part(
        &mut self,
        entry: &Entry,
        from: u64,
        length: u64,
    ) -> Result<Vec<u8>, FormatError> {
        let fits = from
            .checked_add(length)
            .is_some_and(|end| end <= entry.packed);
        if entry.method != Method::Stored || !fits {
            return Err(FormatError::damaged(format!(
                "`{}` has no bytes {from} to {}",
                entry.name,
                from.saturating_add(length)
            )));
        }
        let start = self.data_start(entry)?;
        self.reader.seek(SeekFrom::Start(start + from))?;
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Where the bytes of an entry begin: its own header has a name and extra fields that may differ from the table's.
    fn data_start(&mut self, entry: &Entry) -> Result<u64, FormatError> {
        let mut header = [0; 30];
        self.reader.seek(SeekFrom::Start(entry.header))?;
        let outside =
            || FormatError::damaged(format!("`{}` is not where it should be", entry.name));
        self.reader.read_exact(&mut header).map_err(|_| outside())?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(outside());
        }
        let skip = 30 + u64::from(short(&header, 26)) + u64::from(short(&header, 28));
        let start = entry.header + skip;
        start
            .checked_add(entry.packed)
            .filter(|&end| end <= self.length)
            .map(|_| start)
            .ok_or_else(outside)
    }
}

/// Number of entries, bytes, and place of the table of contents.
fn find_directory<R: Read + Seek>(
    reader: &mut R,
    length: u64,
) -> Result<(u64, u64, u64), FormatError> {
    let none = || FormatError::damaged("the archive has no table of contents at its end");
    let tail_start = length.saturating_sub((END + 0xffff) as u64);
    reader.seek(SeekFrom::Start(tail_start))?;
    let mut tail = Vec::new();
    reader.read_to_end(&mut tail)?;
    let at = (0..=tail.len().saturating_sub(END))
        .rev()
        .find(|&at| tail[at..].starts_with(b"PK\x05\x06"))
        .filter(|at| at + END <= tail.len())
        .ok_or_else(none)?;
    let (count, size, start) = (
        u64::from(short(&tail, at + 10)),
        u64::from(long(&tail, at + 12)),
        u64::from(long(&tail, at + 16)),
    );
    if count != 0xffff && size != 0xffff_ffff && start != 0xffff_ffff {
        return Ok((count, size, start));
    }
    // The 64-bit record is found through a locator of 20 bytes before the end record.
    let locator = at
        .checked_sub(20)
        .filter(|&at| tail[at..].starts_with(b"PK\x06\x07"))
        .ok_or_else(none)?;
    let place = quad(&tail, locator + 8);
    if place.checked_add(56).is_none_or(|end| end > length) {
        return Err(none());
    }
    let mut record = [0; 56];
    reader.seek(SeekFrom::Start(place))?;
    reader.read_exact(&mut record)?;
    if !record.starts_with(b"PK\x06\x06") {
        return Err(none());
    }
    Ok((quad(&record, 32), quad(&record, 40), quad(&record, 48)))
}

/// The first entry of a table of contents, and the bytes it takes there.
fn parse_entry(bytes: &[u8], length: u64) -> Result<(Entry, usize), FormatError> {
    let cut = || FormatError::damaged("the archive's table of contents ends too early");
    if bytes.len() < 46 || !bytes.starts_with(b"PK\x01\x02") {
        return Err(cut());
    }
    let lengths = [28, 30, 32].map(|at| usize::from(short(bytes, at)));
    let [name_length, extra_length, comment_length] = lengths;
    let used = 46 + name_length + extra_length + comment_length;
    if bytes.len() < used {
        return Err(cut());
    }
    let name = String::from_utf8_lossy(&bytes[46..46 + name_length]).into_owned();
    let extra = &bytes[46 + name_length..46 + name_length + extra_length];
    let mut sizes = [24, 20, 42].map(|at| u64::from(long(bytes, at)));
    widen(&mut sizes, extra).ok_or_else(cut)?;
    let [size, packed, header] = sizes;
    if short(bytes, 8) & 1 != 0 {
        return Err(FormatError::unsupported(format!("`{name}` is encrypted")));
    }
    let method = match short(bytes, 10) {
        0 if size == packed => Method::Stored,
        8 => Method::Deflated,
        0 => {
            let problem = format!("`{name}` is stored, yet has two sizes");
            return Err(FormatError::Damaged(problem));
        }
        other => {
            let problem = format!("`{name}` is compressed by method {other}, not by deflate");
            return Err(FormatError::Unsupported(problem));
        }
    };
    if header.checked_add(packed).is_none_or(|end| end > length) {
        return Err(FormatError::damaged(format!(
            "`{name}` lies outside of the file"
        )));
    }
    let entry = Entry {
        name,
        size,
        method,
        packed,
        crc: long(bytes, 16),
        header,
    };
    Ok((entry, used))
}

/// Those of size, packed size and place that did not fit 32 bits are in extra field 1, in this order.
fn widen(sizes: &mut [u64; 3], mut extra: &[u8]) -> Option<()> {
    while extra.len() >= 4 {
        let (kind, length) = (short(extra, 0), usize::from(short(extra, 2)));
        let field = extra.get(4..4 + length)?;
        if kind == 1 {
            let wide = sizes.iter_mut().filter(|size| **size == 0xffff_ffff);
            for (size, value) in wide.zip(field.as_chunks::<8>().0) {
                *size = u64::from_le_bytes(*value);
            }
        }
        extra = &extra[4 + length..];
    }
    Some(())
}

/// Writes an archive of stored entries; equal contents make equal bytes.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    at: u64,
    entries: Vec<Entry>,
}

impl<W: Write> Writer<W> {
    /// An archive without entries, from where `out` is.
    pub fn new(out: W) -> Self {
        Self {
            out,
            at: 0,
            entries: Vec::new(),
        }
    }

    /// Adds an entry whose bytes are `parts`, one after another.
    ///
    /// # Errors
    /// Of `out`.
    pub fn add(&mut self, name: &str, parts: &[&[u8]]) -> std::io::Result<()> {
        let size = parts.iter().map(|part| part.len() as u64).sum();
        let mut crc = Crc::new();
        parts.iter().for_each(|part| crc.update(part));
        let entry = Entry {
            name: name.to_owned(),
            size,
            method: Method::Stored,
            packed: size,
            crc: crc.sum(),
            header: self.at,
        };
        let mut header = b"PK\x03\x04".to_vec();
        header.extend(common(&entry, 20));
        header.extend(name.as_bytes());
        header.extend(wide(&[size, size]));
        self.put(&header)?;
        for part in parts {
            self.put(part)?;
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Writes the table of contents and gives `out` back.
    ///
    /// # Errors
    /// Of `out`.
    pub fn finish(mut self) -> std::io::Result<W> {
        let start = self.at;
        for entry in std::mem::take(&mut self.entries) {
            let mut record = b"PK\x01\x02\x2d\x00".to_vec();
            record.extend(common(&entry, 28));
            // Comment, disk, attributes; then where it is.
            record.extend([0; 10]);
            record.extend([0xff; 4]);
            record.extend(entry.name.as_bytes());
            record.extend(wide(&[entry.size, entry.size, entry.header]));
            self.put(&record)?;
            self.entries.push(entry);
        }
        let (count, size, place) = (self.entries.len() as u64, self.at - start, self.at);
        let mut end = b"PK\x06\x06".to_vec();
        end.extend(44_u64.to_le_bytes());
        end.extend([0x2d, 0, 0x2d, 0]);
        end.extend([0; 8]);
        for value in [count, count, size, start] {
            end.extend(value.to_le_bytes());
        }
        end.extend(b"PK\x06\x07\0\0\0\0");
        end.extend(place.to_le_bytes());
        end.extend(1_u32.to_le_bytes());
        end.extend(b"PK\x05\x06\0\0\0\0");
        end.extend([0xff; 12]);
        end.extend([0, 0]);
        self.put(&end)?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// What both headers of an entry share: version 4.5, UTF-8 names, stored, 1 January 1980, checksum, sizes in the extra field.
fn common(entry: &Entry, extra: u16) -> Vec<u8> {
    let mut bytes = vec![0x2d, 0, 0, 0x08, 0, 0, 0, 0, 0x21, 0];
    bytes.extend(entry.crc.to_le_bytes());
    bytes.extend([0xff; 8]);
    bytes.extend((entry.name.len() as u16).to_le_bytes());
    bytes.extend(extra.to_le_bytes());
    bytes
}

fn wide(values: &[u64]) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend((8 * values.len() as u16).to_le_bytes());
    values
        .iter()
        .for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn short(bytes: &[u8], at: usize) -> u16 {
    bytes_at(bytes, at).map_or(0, u16::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u32 {
    bytes_at(bytes, at).map_or(0, u32::from_le_bytes)
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    bytes_at(bytes, at).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.add("a/one", &[b"hello ", b"world"]).unwrap();
        writer.add("two", &[&[7; 1000]]).unwrap();
        writer.add("none", &[]).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut archive = Archive::open(Cursor::new(written())).unwrap();
        let names: Vec<_> = archive.entries().iter().map(|e| e.name.clone()).collect();
        assert_eq!(names, ["a/one", "two", "none"]);
        let mut read = |name: &str| {
            let entry = archive.find(name).unwrap();
            archive.read(&entry, 1000).unwrap()
        };
        assert_eq!(read("a/one"), b"hello world");
        assert_eq!(read("two"), [7; 1000]);
        assert_eq!(read("none"), b"");
        let entry = archive.find("a/one").unwrap();
        assert_eq!(archive.read_part(&entry, 6, 5).unwrap(), b"world");
        assert!(archive.read_part(&entry, 7, 5).is_err());
        assert!(archive.read(&entry, 10).is_err(), "over the limit");
        assert_eq!(written(), written());
    }

    #[test]
    fn damage_is_an_error_wherever_it_is() {
        let good = written();
        for end in 0..good.len() {
            let cut = Archive::open(Cursor::new(&good[..end]));
            assert!(cut.is_err(), "{end} bytes were taken for an archive");
        }
        let mut flipped = good.clone();
        flipped[30 + 5 + 20 + 2] ^= 1;
        let mut archive = Archive::open(Cursor::new(flipped)).unwrap();
        let entry = archive.find("a/one").unwrap();
        let error = archive.read(&entry, 1000).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
        // Any byte may be anything: an error or not, but no panic and no more memory than the file has.
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Ok(mut archive) = Archive::open(Cursor::new(bad)) {
                    for entry in archive.entries().to_vec() {
                        let _ = archive.read(&entry, 1 << 20);
                        let _ = archive.read_part(&entry, 1, u64::MAX);
                    }
                }
            }
        }
    }

    #[test]
    fn deflated_entries_are_unpacked_up_to_their_size() {
        let packed: Vec<u8> = {
            use flate2::{Compression, write::DeflateEncoder};
            let mut out = DeflateEncoder::new(Vec::new(), Compression::best());
            out.write_all(&[0; 100_000]).unwrap();
            out.finish().unwrap()
        };
        // A stored entry with these bytes, made a deflated one in the table of contents.
        let archive = |size: u64| {
            let mut writer = Writer::new(Vec::new());
            writer.add("z", &[&packed]).unwrap();
            writer.entries[0].size = size;
            writer.entries[0].crc = 0;
            let mut bytes = writer.finish().unwrap();
            let table = bytes
                .windows(4)
                .position(|w| w == b"PK\x01\x02")
                .expect("written");
            bytes[table + 10] = 8;
            // `finish` writes one size twice; the packed one is the second.
            let wide = table + 46 + 1 + 4 + 8;
            bytes[wide..wide + 8].copy_from_slice(&(packed.len() as u64).to_le_bytes());
            let mut archive = Archive::open(Cursor::new(bytes)).unwrap();
            let entry = archive.find("z").unwrap();
            assert_eq!(entry.method, Method::Deflated);
            archive.read(&entry, 1 << 20)
        };
        assert_eq!(archive(100_000).unwrap(), vec![0; 100_000]);
        assert!(archive(99_999).is_err(), "unpacks to more than it says");
        assert!(archive(100_001).is_err());
        assert!(archive(1 << 40).is_err());
    }
}

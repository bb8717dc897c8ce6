//! NumPy arrays: `.npy` files (NEP 1), alone or in the ZIP archive that `.npz` is.

use std::io::Read;

use half::f16;

use crate::FormatError;

/// Longest header that is read, as NumPy itself has it.
const MAX_HEADER: usize = 10_000;
/// Largest array that is read, in bytes.
pub const MAX_ARRAY: u64 = 4 << 30;

/// Types of values that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IEEE 754, of 2, 4 or 8 bytes.
    Float,
    /// Two's complement, of 1 to 8 bytes.
    Signed,
    /// Of 1 to 8 bytes; booleans are of one.
    Unsigned,
}

/// An array in memory, as it was in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    /// Type of its values.
    pub kind: Kind,
    /// Bytes of one value.
    pub size: usize,
    /// Whether the first index runs fastest.
    pub fortran_order: bool,
    big_endian: bool,
    bytes: Vec<u8>,
}

impl Array {
    /// Reads a `.npy` file. Memory is taken as bytes arrive.
    ///
    /// # Errors
    /// [`FormatError`] if it is none, ends too early, has more than [`MAX_ARRAY`] bytes, or values other than numbers.
    pub fn read(mut reader: impl Read) -> Result<Self, FormatError> {
        let mut start = [0; 8];
        if reader.read_exact(&mut start).is_err() || !start.starts_with(b"\x93NUMPY") {
            return Err(FormatError::unsupported("not a NumPy array (.npy)"));
        }
        let cut = |_| FormatError::damaged("the array's header ends too early");
        let length = match start[6] {
            1 => {
                let mut length = [0; 2];
                reader.read_exact(&mut length).map_err(cut)?;
                usize::from(u16::from_le_bytes(length))
            }
            2 | 3 => {
                let mut length = [0; 4];
                reader.read_exact(&mut length).map_err(cut)?;
                u32::from_le_bytes(length) as usize
            }
            version => {
                let problem = format!("an array of version {version} of the format, not 1 to 3");
                return Err(FormatError::Unsupported(problem));
            }
        };
        if length > MAX_HEADER {
            return Err(FormatError::damaged(format!(
                "the array's header has {length} bytes"
            )));
        }
        let mut text = vec![0; length];
        reader.read_exact(&mut text).map_err(cut)?;
        let header = Header::parse(&String::from_utf8_lossy(&text))?;
        // Sizes beside a zero count too: strides are their products.
        let mut room = header.shape.iter().map(|&size| size.max(1));
        room.try_fold(header.size, usize::checked_mul)
            .filter(|&room| room as u64 <= MAX_ARRAY)
            .ok_or_else(|| {
                FormatError::unsupported(format!(
                    "an array of shape {:?} is more than the {MAX_ARRAY} bytes that are read",
                    header.shape
                ))
            })?;
        let total = header.size * header.shape.iter().product::<usize>();
        let mut bytes = Vec::new();
        reader.take(total as u64).read_to_end(&mut bytes)?;
        if bytes.len() != total {
            return Err(FormatError::damaged(format!(
                "an array of shape {:?} has {total} bytes, there are {}",
                header.shape,
                bytes.len()
            )));
        }
        Ok(Self {
            shape: header.shape,
            kind: header.kind,
            size: header.size,
            fortran_order: header.fortran_order,
            big_endian: header.big_endian,
            bytes,
        })
    }

    /// Number of its values.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How far apart values are whose indices differ by one, by dimension.
    pub fn strides(&self) -> Vec<usize> {
        let mut step = 1;
        let mut strides = vec![0; self.shape.len()];
        let stride = |(stride, &size): (&mut usize, &usize)| {
            *stride = step;
            step *= size;
        };
        let pairs = strides.iter_mut().zip(&self.shape);
        if self.fortran_order {
            pairs.for_each(stride);
        } else {
            pairs.rev().for_each(stride);
        }
        strides
    }

    /// The value at a place in memory.
    ///
    /// # Panics
    /// If `place` is not below [`len`](Self::len).
    pub fn float(&self, place: usize) -> f64 {
        match (self.kind, self.size) {
            (Kind::Float, 2) => f16::from_bits(self.bits(place) as u16).to_f64(),
            (Kind::Float, 4) => f32::from_bits(self.bits(place) as u32).into(),
            (Kind::Float, _) => f64::from_bits(self.bits(place)),
            (Kind::Signed, _) => self.signed(place) as f64,
            (Kind::Unsigned, _) => self.bits(place) as f64,
        }
    }

    /// The whole number at a place in memory; `None` if it is no such number or beyond 64 bits.
    ///
    /// # Panics
    /// If `place` is not below [`len`](Self::len).
    pub fn whole(&self, place: usize) -> Option<i64> {
        match self.kind {
            Kind::Signed => Some(self.signed(place)),
            Kind::Unsigned => i64::try_from(self.bits(place)).ok(),
            Kind::Float => {
                let value = self.float(place);
                (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64)
            }
        }
    }

    fn signed(&self, place: usize) -> i64 {
        let unused = 64 - 8 * self.size as u32;
        (self.bits(place) << unused) as i64 >> unused
    }

    fn bits(&self, place: usize) -> u64 {
        let bytes = &self.bytes[place * self.size..(place + 1) * self.size];
        let add = |bits: u64, &byte: &u8| bits << 8 | u64::from(byte);
        if self.big_endian {
            bytes.iter().fold(0, add)
        } else {
            bytes.iter().rev().fold(0, add)
        }
    }
}

struct Header {
    shape: Vec<usize>,
    kind: Kind,
    size: usize,
    fortran_order: bool,
    big_endian: bool,
}

impl Header {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`
    fn parse(text: &str) -> Result<Self, FormatError> {
        let after = |key: &str| {
            let quoted = [format!("'{key}'"), format!("\"{key}\"")];
            let (at, key) = quoted.iter().find_map(|key| Some((text.find(key)?, key)))?;
            text[at + key.len()..]
                .trim_start()
                .strip_prefix(':')
                .map(str::trim_start)
        };
        let missing = || FormatError::damaged("the array's header lacks its type, order or shape");
        let descr = after("descr").ok_or_else(missing)?;
        let unreadable = || {
            let descr: String = descr.chars().take(24).collect();
            FormatError::Unsupported(format!("an array of {descr}: only numbers are read"))
        };
        let quote = descr
            .chars()
            .next()
            .filter(|c| matches!(c, '\'' | '"'))
            .ok_or_else(unreadable)?;
        let code = descr[1..].split(quote).next().unwrap_or("");
        let mut letters = code.chars();
        let (order, kind) = (letters.next(), letters.next());
        let size = letters
            .as_str()
            .parse::<usize>()
            .map_err(|_| unreadable())?;
        let kind = match (kind, size) {
            (Some('f'), 2 | 4 | 8) => Kind::Float,
            (Some('i'), 1 | 2 | 4 | 8) => Kind::Signed,
            (Some('u'), 1 | 2 | 4 | 8) | (Some('b'), 1) => Kind::Unsigned,
            _ => return Err(unreadable()),
        };
        let big_endian = match order {
            Some('<' | '|' | '=') => false,
            Some('>') => true,
            _ => return Err(unreadable()),
        };
        let fortran_order = match after("fortran_order").ok_or_else(missing)? {
            rest if rest.starts_with("True") => true,
            rest if rest.starts_with("False") => false,
            _ => return Err(missing()),
        };
        let shape = after("shape")
            .and_then(|rest| rest.strip_prefix('(')?.split_once(')'))
            .ok_or_else(missing)?
            .0
            .split(',')
            .map(str::trim)
            .filter(|size| !size.is_empty())
            // Python 2 wrote `10L`.
            .map(|size| size.trim_end_matches('L').parse())
            .collect::<Result<Vec<usize>, _>>()
            .map_err(|_| missing())?;
        Ok(Self {
            shape,
            kind,
            size,
            fortran_order,
            big_endian,
        })
    }
}

/// The header of a `.npy` file of little-endian values in row-major order: `<f4`, `<i8`, `|u1`.
pub fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let mut text = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}",
        sizes.trim_end()
    );
    // Values start at a multiple of 64.
    let unpadded = 10 + text.len() + 1;
    text.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn array(descr: &str, data: &[u8]) -> Array {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), }}\n");
        Array::read(file(&header, data).as_slice()).unwrap()
    }

    /// Bytes as NumPy's `np.array([..], dtype).tobytes()` gives them.
    #[test]
    fn values_of_every_type() {
        let both = |array: Array| [array.float(0), array.float(1)];
        assert_eq!(both(array("<f2", &[0x00, 0x3c, 0x00, 0xb8])), [1.0, -0.5]);
        assert_eq!(
            both(array("<f4", &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf])),
            [1.0, -0.5]
        );
        assert_eq!(
            both(array(">f4", &[0x3f, 0x80, 0, 0, 0xbf, 0, 0, 0])),
            [1.0, -0.5]
        );
        let eight = [0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 0xe0, 0xbf];
        assert_eq!(both(array("<f8", &eight)), [1.0, -0.5]);
        assert_eq!(both(array("|u1", &[7, 255])), [7.0, 255.0]);
        assert_eq!(both(array("|i1", &[7, 255])), [7.0, -1.0]);
        assert_eq!(both(array("|b1", &[0, 1])), [0.0, 1.0]);
        assert_eq!(both(array(">i2", &[0, 7, 0xff, 0xfe])), [7.0, -2.0]);
        let wide = array(
            "<i8",
            &[
                7, 0, 0, 0, 0, 0, 0, 0, 0xfe, 255, 255, 255, 255, 255, 255, 255,
            ],
        );
        assert_eq!([wide.whole(0), wide.whole(1)], [Some(7), Some(-2)]);
        assert_eq!(
            array("<f4", &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf]).whole(1),
            None
        );
        assert_eq!(array("<u8", &[0xff; 16]).whole(0), None);
    }

    #[test]
    fn what_is_written_is_read_back_aligned() {
        for shape in [&[][..], &[3], &[2, 3, 4, 5]] {
            let mut bytes = header("<f4", shape);
            assert_eq!(bytes.len() % 64, 0);
            let count: usize = shape.iter().product();
            bytes.extend((0..count).flat_map(|i| (i as f32).to_le_bytes()));
            let array = Array::read(bytes.as_slice()).unwrap();
            assert_eq!((array.shape.as_slice(), array.len()), (shape, count));
            assert!((0..count).all(|i| array.float(i) == i as f64));
        }
        let array = array("<f4", &[0; 8]);
        assert_eq!(array.strides(), [1]);
        let turned = Array {
            shape: vec![2, 3, 4],
            fortran_order: true,
            ..array.clone()
        };
        assert_eq!(turned.strides(), [1, 2, 6]);
        let straight = Array {
            shape: vec![2, 3, 4],
            ..array
        };
        assert_eq!(straight.strides(), [12, 4, 1]);
    }

    #[test]
    fn what_cannot_be_is_an_error_and_takes_no_memory() {
        let error = |header: &str| {
            Array::read(file(header, &[0; 64]).as_slice())
                .unwrap_err()
                .to_string()
        };
        let shape =
            |shape: &str| format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}");
        assert!(error(&shape("(99999999999,)")).contains("more than"));
        assert!(error(&shape("(4294967296, 4294967296, 4294967296)")).contains("more than"));
        assert!(error(&shape("(0, 4294967296, 4294967296)")).contains("more than"));
        assert!(error(&shape("(500000000,)")).contains("there are 64"));
        assert!(error(&shape("(-1,)")).contains("header"));
        assert!(error(&shape("(((((((")).contains("header"));
        assert!(
            error("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }").contains("numbers")
        );
        assert!(
            error("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }")
                .contains("numbers")
        );
        assert!(error("{'descr': '<f4").contains("lacks"));
        for bad in [
            &b""[..],
            b"\x93NUMPY\x01\x00\xff\xff{",
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
            b"PK\x03\x04",
        ] {
            assert!(Array::read(bad).is_err());
        }
    }
}

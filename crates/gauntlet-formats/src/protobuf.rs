//! The wire format of protocol buffers, as far as ONNX needs it: varints, fields of bytes, 32 and 64 bits. Reading never copies and never
//! allocates by a length that the bytes state.

use crate::{FormatError, bytes_at};

/// Longest list of whole numbers that is read from packed ones.
const MAX_INTS: usize = 1 << 24;

/// Value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Bits64([u8; 8]),
    Bytes(&'a [u8]),
    Bits32([u8; 4]),
}

/// The fields of a message, one after another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    /// Number and value of the next field; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, FormatError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|&number| number > 0);
        let number =
            number.ok_or_else(|| FormatError::damaged("a field with a number that cannot be"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Bits64(self.fixed()?),
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).ok().filter(|&n| n <= self.0.len());
                let Some(length) = length else {
                    return Err(FormatError::damaged(
                        "a field that is longer than what it is in",
                    ));
                };
                let (bytes, rest) = self.0.split_at(length);
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            5 => Wire::Bits32(self.fixed()?),
            kind => {
                return Err(FormatError::damaged(format!(
                    "a field of the unknown kind {kind}"
                )));
            }
        };
        Ok(Some((number, wire)))
    }

    fn varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for (at, &byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(FormatError::damaged("a number without an end"))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let bytes =
            bytes_at(self.0, 0).ok_or_else(|| FormatError::damaged("a field that is cut short"))?;
        self.0 = &self.0[N..];
        Ok(bytes)
    }
}

impl<'a> Wire<'a> {
    pub(crate) fn bytes(self) -> Result<&'a [u8], FormatError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(FormatError::damaged(
                "a number where a text or a message should be",
            )),
        }
    }

    pub(crate) fn text(self) -> Result<String, FormatError> {
        let text = std::str::from_utf8(self.bytes()?);
        Ok(text
            .map_err(|_| FormatError::damaged("a text that is not UTF-8"))?
            .to_owned())
    }

    pub(crate) fn int(self) -> Result<i64, FormatError> {
        match self {
            Self::Varint(value) => Ok(value as i64),
            _ => Err(FormatError::damaged(
                "something else where a whole number should be",
            )),
        }
    }

    pub(crate) fn float(self) -> Result<f32, FormatError> {
        match self {
            Self::Bits32(bits) => Ok(f32::from_le_bytes(bits)),
            _ => Err(FormatError::damaged(
                "something else where a number should be",
            )),
        }
    }

    /// Appends whole numbers, packed or single.
    pub(crate) fn ints(self, values: &mut Vec<i64>) -> Result<(), FormatError> {
        let Self::Bytes(bytes) = self else {
            values.push(self.int()?);
            return Ok(());
        };
        let mut packed = Fields(bytes);
        while !packed.0.is_empty() {
            values.push(packed.varint()? as i64);
            // One byte of the file becomes eight in memory.
            if values.len() > MAX_INTS {
                return Err(FormatError::unsupported(format!(
                    "a list of more than {MAX_INTS} whole numbers"
                )));
            }
        }
        Ok(())
    }

    /// Appends `f32`s, packed or single.
    pub(crate) fn floats(self, values: &mut Vec<f32>) -> Result<(), FormatError> {
        let Self::Bytes(bytes) = self else {
            values.push(self.float()?);
            return Ok(());
        };
        let (whole, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(FormatError::damaged("numbers that are cut short"));
        }
        values.extend(whole.iter().map(|&raw| f32::from_le_bytes(raw)));
        Ok(())
    }
}

/// A message that is being written.
#[derive(Debug, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn int(&mut self, number: u32, value: i64) {
        self.varint(u64::from(number) << 3);
        self.varint(value as u64);
    }

    pub(crate) fn float(&mut self, number: u32, value: f32) {
        self.varint(u64::from(number) << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    pub(crate) fn message(&mut self, number: u32, message: &Self) {
        self.bytes(number, &message.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the format's own description.
    #[test]
    fn messages_are_encoded_as_described() {
        let mut message = Message::default();
        message.int(1, 150);
        assert_eq!(message.0, [0x08, 0x96, 0x01]);
        let mut message = Message::default();
        message.bytes(2, b"testing");
        assert_eq!(message.0, b"\x12\x07testing");
        let mut fields = Fields(&[0x32, 0x06, 0x03, 0x8e, 0x02, 0x9e, 0xa7, 0x05]);
        let (number, wire) = fields.next().unwrap().unwrap();
        let mut values = Vec::new();
        wire.ints(&mut values).unwrap();
        assert_eq!((number, values), (6, vec![3, 270, 86942]));
        assert_eq!(fields.next().unwrap(), None);
        let mut message = Message::default();
        message.int(1, -1);
        assert_eq!(message.0.len(), 11);
        assert_eq!(
            Fields(&message.0).next().unwrap().unwrap().1.int().unwrap(),
            -1
        );
    }

    #[test]
    fn lies_are_errors() {
        let endless = [0x80; 11];
        let deep: [&[u8]; 6] = [
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f],
            &[0x0d, 1, 2],
            &[0x0b],
            &[0x00, 0x01],
            &endless,
            &[0x08],
        ];
        for bytes in deep {
            assert!(Fields(bytes).next().is_err(), "{bytes:?}");
        }
    }
}

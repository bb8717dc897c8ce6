//! Python's pickles (protocols 0 to 5), as far as plain data and the tensors of `torch.save` need them.
//!
//! The machine builds values and calls nothing. A global that is no plain data is refused by name, as
//! `torch.load(weights_only=True)` does. Values are nodes of one list and refer to each other by number, so neither deep nesting nor
//! a value inside itself can exhaust the stack or multiply memory; the number of nodes is bounded by the pickle's length.

use std::collections::HashMap;

use crate::{Dtype, FormatError, bytes_at};

/// Largest pickle that is read. That of a state dict is a few kilobytes, of a training checkpoint hundreds.
pub(crate) const MAX_PICKLE: u64 = 16 << 20;
/// Most values in a pickle, and most references to them that are remembered or copied.
const MAX_NODES: usize = 1 << 20;
/// Longest name of a class, and longest key of a storage.
const MAX_NAME: usize = 256;
/// Values that are looked at to see whether an object has tensors.
const MAX_LOOKS: usize = 1000;

/// Number of a value.
pub(crate) type Id = u32;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Int(i64),
    Bool(bool),
    Text(String),
    /// Tuples, lists, sets.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by its full name; never looked up.
    Global(String),
    /// What a persistent id names.
    Storage(Storage),
    Tensor(View),
    /// A tensor of a kind that is not read, by the function that would build it.
    Foreign(String),
    /// Data that no tensor needs: None, numbers, bytes, objects.
    Other,
}

/// Where the values of tensors are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) key: String,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) elements: u64,
}

/// A tensor: which elements of a storage it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) storage: Storage,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<u64>,
}

/// A pickle's values; the last is what was pickled.
#[derive(Debug)]
pub(crate) struct Pickled {
    nodes: Vec<Node>,
    pub(crate) root: Id,
    /// Bytes that the pickle took.
    pub(crate) length: usize,
}

impl Pickled {
    pub(crate) fn get(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// The value under a key of a dict.
    pub(crate) fn item(&self, id: Id, key: &str) -> Option<&Node> {
        let Node::Dict(items) = self.get(id) else {
            return None;
        };
        items
            .iter()
            .find(|(k, _)| matches!(self.get(*k), Node::Text(text) if text == key))
            .map(|(_, value)| self.get(*value))
    }
}

/// Runs the pickle at the start of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Result<Pickled, FormatError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    let root = machine.run()?;
    Ok(Pickled {
        root,
        length: machine.at,
        nodes: machine.nodes,
    })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Items of dicts that were made from others.
    copied: usize,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, FormatError> {
        loop {
            let [op] = self.take()?;
            match op {
                // Frames and the protocol's number say nothing that matters here.
                0x80 => {
                    self.take::<1>()?;
                }
                0x95 => {
                    self.take::<8>()?;
                }
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.pop_mark()?;
                }
                b'2' => self.stack.push(self.top()?),
                b'N' => self.push(Node::Other)?,
                0x88 | 0x89 => self.push(Node::Bool(op == 0x88))?,
                b'I' | b'L' => {
                    let line = self.line()?;
                    let node = match line.trim_end_matches('L').parse() {
                        _ if op == b'I' && (line == "00" || line == "01") => {
                            Node::Bool(line == "01")
                        }
                        Ok(value) => Node::Int(value),
                        // Python's integers have any size.
                        Err(_) => Node::Other,
                    };
                    self.push(node)?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.take()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let [value] = self.take()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.take()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a | 0x8b => {
                    let length = self.length(if op == 0x8a { 1 } else { 4 })?;
                    let node = whole_number(self.slice(length)?).map_or(Node::Other, Node::Int);
                    self.push(node)?;
                }
                b'F' => {
                    self.line()?;
                    self.push(Node::Other)?;
                }
                b'G' => {
                    self.take::<8>()?;
                    self.push(Node::Other)?;
                }
                b'S' | b'V' => {
                    let line = self.line()?;
                    let text = if op == b'S' {
                        line.trim_matches(['\'', '"'])
                    } else {
                        &line
                    };
                    self.push(Node::Text(text.to_owned()))?;
                }
                b'U' | 0x8c | b'T' | b'X' | 0x8d => {
                    let length = self.length(match op {
                        b'U' | 0x8c => 1,
                        0x8d => 8,
                        _ => 4,
                    })?;
                    let text = String::from_utf8_lossy(self.slice(length)?).into_owned();
                    self.push(Node::Text(text))?;
                }
                b'C' | b'B' | 0x8e | 0x96 => {
                    let length = self.length(match op {
                        b'C' => 1,
                        b'B' => 4,
                        _ => 8,
                    })?;
                    self.slice(length)?;
                    self.push(Node::Other)?;
                }
                b')' | b']' | 0x8f => self.push(Node::List(Vec::new()))?,
                b't' | b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items))?;
                }
                0x85..=0x87 => {
                    let count = usize::from(op - 0x84);
                    let from = self.stack.len().checked_sub(count).ok_or_else(empty)?;
                    self.above_mark(from)?;
                    let items = self.stack.split_off(from);
                    self.push(Node::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.extend(&items)?;
                }
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Dict(pairs(&items)?))?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.insert(&items)?;
                }
                b'c' => {
                    let name = format!("{}.{}", self.line()?, self.line()?);
                    self.global(name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Node::Text(name), Node::Text(module)) =
                        (self.node(name), self.node(module))
                    else {
                        return Err(odd("a name that is no text"));
                    };
                    self.global(format!("{module}.{name}"))?;
                }
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    let node = self.call(callable, arguments)?;
                    self.push(node)?;
                }
                0x92 => {
                    self.pop()?;
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    let node = self.call(callable, arguments)?;
                    self.push(node)?;
                }
                // State of an object: such as `_metadata` of a state dict. No tensor needs it.
                b'b' => {
                    let state = self.pop()?;
                    let object = self.top()?;
                    if self.node(object) == &Node::Other && self.holds_tensor(&[state]) {
                        self.nodes[object as usize] =
                            Node::Foreign("an object with tensors".to_owned());
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(Node::Storage(storage))?;
                }
                b'q' | b'r' | b'p' | 0x94 => {
                    let place = match op {
                        0x94 => self.memo.len() as u32,
                        b'p' => self
                            .line()?
                            .parse()
                            .map_err(|_| odd("a memo without number"))?,
                        _ => self.length(if op == b'q' { 1 } else { 4 })? as u32,
                    };
                    self.memo.insert(place, self.top()?);
                    if self.memo.len() > MAX_NODES {
                        return Err(too_many());
                    }
                }
                b'h' | b'j' | b'g' => {
                    let place = match op {
                        b'g' => self
                            .line()?
                            .parse()
                            .map_err(|_| odd("a memo without number"))?,
                        _ => self.length(if op == b'h' { 1 } else { 4 })? as u32,
                    };
                    let id = *self
                        .memo
                        .get(&place)
                        .ok_or_else(|| odd("an unknown memo"))?;
                    self.stack.push(id);
                }
                other => return Err(odd(&format!("operation {other:#04x}"))),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let bytes = bytes_at(self.bytes, self.at).ok_or_else(empty)?;
        self.at += N;
        Ok(bytes)
    }

    /// A length of that many bytes.
    fn length(&mut self, bytes: usize) -> Result<usize, FormatError> {
        let value = match bytes {
            1 => u64::from(self.take::<1>()?[0]),
            4 => u64::from(u32::from_le_bytes(self.take()?)),
            _ => u64::from_le_bytes(self.take()?),
        };
        usize::try_from(value).map_err(|_| empty())
    }

    fn slice(&mut self, length: usize) -> Result<&[u8], FormatError> {
        let end = self.at.checked_add(length).ok_or_else(empty)?;
        let slice = self.bytes.get(self.at..end).ok_or_else(empty)?;
        self.at = end;
        Ok(slice)
    }

    fn line(&mut self) -> Result<String, FormatError> {
        let rest = self.bytes.get(self.at..).ok_or_else(empty)?;
        let end = rest
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or_else(empty)?;
        self.at += end + 1;
        let line = String::from_utf8_lossy(&rest[..end]);
        Ok(line.trim_end_matches('\r').to_owned())
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn push(&mut self, node: Node) -> Result<(), FormatError> {
        if self.nodes.len() == MAX_NODES {
            return Err(too_many());
        }
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        Ok(())
    }

    fn above_mark(&self, length: usize) -> Result<(), FormatError> {
        match self.marks.last() {
            Some(&mark) if length < mark => Err(empty()),
            _ => Ok(()),
        }
    }

    fn pop(&mut self) -> Result<Id, FormatError> {
        let id = self.stack.pop().ok_or_else(empty)?;
        self.above_mark(self.stack.len())?;
        Ok(id)
    }

    fn top(&self) -> Result<Id, FormatError> {
        self.stack.last().copied().ok_or_else(empty)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, FormatError> {
        let mark = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(mark))
    }

    fn extend(&mut self, items: &[Id]) -> Result<(), FormatError> {
        let list = self.top()? as usize;
        match &mut self.nodes[list] {
            Node::List(list) => list.extend(items),
            Node::Other => {}
            _ => return Err(odd("an append to something that is no list")),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), FormatError> {
        let items = pairs(items)?;
        let dict = self.top()? as usize;
        match &mut self.nodes[dict] {
            Node::Dict(dict) => dict.extend(items),
            Node::Other => {}
            _ => return Err(odd("an item for something that is no dict")),
        }
        Ok(())
    }

    fn global(&mut self, name: String) -> Result<(), FormatError> {
        if !is_data(&name) {
            return Err(FormatError::Refused(name));
        }
        self.push(Node::Global(name))
    }

    /// What a call would give. Tensors, dicts and sets are understood; other data is left aside.
    fn call(&mut self, callable: Id, arguments: Id) -> Result<Node, FormatError> {
        let (Node::Global(name), Node::List(arguments)) =
            (self.node(callable), self.node(arguments))
        else {
            return Err(odd("a call of something that is no class"));
        };
        match name.as_str() {
            "collections.OrderedDict" => {
                let items: Vec<(Id, Id)> = match arguments.first().map(|&id| self.node(id)) {
                    None => Vec::new(),
                    Some(Node::List(items)) => items
                        .iter()
                        .map(|&pair| match self.node(pair) {
                            Node::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
                            _ => Err(odd("a dict of something else than pairs")),
                        })
                        .collect::<Result<_, _>>()?,
                    Some(Node::Dict(items)) => items.clone(),
                    Some(_) => return Err(odd("a dict of something else than pairs")),
                };
                self.copied += items.len();
                if self.copied > MAX_NODES {
                    return Err(too_many());
                }
                Ok(Node::Dict(items))
            }
            "collections.defaultdict" | "collections.Counter" => Ok(Node::Dict(Vec::new())),
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => {
                self.tensor(arguments).map(Node::Tensor)
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                match arguments.first().map(|&id| self.node(id)) {
                    Some(tensor @ (Node::Tensor(_) | Node::Foreign(_))) => Ok(tensor.clone()),
                    _ => Err(odd("a parameter without tensor")),
                }
            }
            _ if self.holds_tensor(arguments) => Ok(Node::Foreign(format!("`{name}`"))),
            _ => Ok(Node::Other),
        }
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, ...)`
    fn tensor(&self, arguments: &[Id]) -> Result<View, FormatError> {
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(odd("a tensor with too few arguments"));
        };
        let Node::Storage(storage) = self.node(*storage) else {
            return Err(odd("a tensor without storage"));
        };
        let natural = |id: &Id| match self.node(*id) {
            Node::Int(value) => u64::try_from(*value).map_err(|_| odd("a tensor of negative size")),
            _ => Err(odd("a tensor of sizes that are no numbers")),
        };
        let list = |id: &Id| match self.node(*id) {
            Node::List(items) if items.len() <= 16 => items.iter().map(natural).collect(),
            _ => Err(odd("a tensor without sizes")),
        };
        let (shape, strides): (Vec<u64>, Vec<u64>) = (list(shape)?, list(strides)?);
        if shape.len() != strides.len() {
            return Err(odd("a tensor with more sizes than strides, or fewer"));
        }
        Ok(View {
            storage: storage.clone(),
            offset: natural(offset)?,
            shape: shape
                .into_iter()
                .map(|size| usize::try_from(size).map_err(|_| odd("a tensor too large")))
                .collect::<Result<_, _>>()?,
            strides,
        })
    }

    /// `('storage', class, key, device, elements)`; early files have a view in place of the last, None, field.
    fn storage(&self, id: Id) -> Result<Storage, FormatError> {
        let wrong = || odd("a persistent id that names no storage");
        let Node::List(fields) = self.node(id) else {
            return Err(wrong());
        };
        let fields: Vec<_> = fields.iter().map(|&id| self.node(id)).collect();
        let [
            Node::Text(tag),
            Node::Global(class),
            key,
            _,
            Node::Int(elements),
            rest @ ..,
        ] = fields.as_slice()
        else {
            return Err(wrong());
        };
        let key = match key {
            Node::Text(key) => key.clone(),
            Node::Int(key) => key.to_string(),
            _ => return Err(wrong()),
        };
        if tag != "storage" || *elements < 0 || key.len() > MAX_NAME {
            return Err(wrong());
        }
        if !matches!(rest, [] | [Node::Other]) {
            return Err(FormatError::unsupported(
                "its storages are views of other storages, as PyTorch wrote before version 0.4",
            ));
        }
        Ok(Storage {
            key,
            dtype: Dtype::of_storage(class.rsplit('.').next().unwrap_or(class)),
            elements: *elements as u64,
        })
    }

    /// Whether there are tensors in these values, as far as one looks: where there is much to look at, there may be.
    fn holds_tensor(&self, ids: &[Id]) -> bool {
        let mut left = ids.to_vec();
        for looks in 0.. {
            let Some(id) = left.pop() else {
                return false;
            };
            match self.node(id) {
                Node::Tensor(_) | Node::Storage(_) | Node::Foreign(_) => return true,
                Node::List(items) => left.extend(items.iter().take(MAX_LOOKS)),
                Node::Dict(items) => left.extend(items.iter().take(MAX_LOOKS).map(|item| item.1)),
                _ => {}
            }
            if looks == MAX_LOOKS || left.len() > MAX_LOOKS {
                return true;
            }
        }
        unreachable!("the loop has no end")
    }
}

/// Whether a name is that of plain data. What would have to be imported and run to be understood is not.
fn is_data(name: &str) -> bool {
    if name.len() > MAX_NAME {
        return false;
    }
    let torch = |name: &str| {
        let dtype = |name: &str| {
            [
                "float", "double", "half", "bfloat", "int", "uint", "long", "short", "bool",
                "complex",
            ]
            .iter()
            .any(|start| name.starts_with(start))
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        matches!(
            name,
            "Size" | "device" | "Tensor" | "strided" | "storage.UntypedStorage"
        ) || dtype(name)
            || name.ends_with("Storage") && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
            || name.strip_prefix("_utils._rebuild_").is_some_and(|kind| {
                kind.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            })
    };
    let numpy = |name: &str| {
        matches!(
            name,
            "dtype"
                | "ndarray"
                | "core.multiarray.scalar"
                | "core.multiarray._reconstruct"
                | "_core.multiarray.scalar"
                | "_core.multiarray._reconstruct"
                | "bool_"
                | "float16"
                | "float32"
                | "float64"
                | "int32"
                | "int64"
        ) || name
            .strip_prefix("dtypes.")
            .is_some_and(|kind| kind.ends_with("DType"))
    };
    match name.split_once('.') {
        Some(("torch", rest)) => torch(rest),
        Some(("numpy", rest)) => numpy(rest),
        Some(("collections", rest)) => matches!(rest, "OrderedDict" | "defaultdict" | "Counter"),
        Some(("builtins" | "__builtin__", rest)) => {
            matches!(
                rest,
                "set"
                    | "frozenset"
                    | "bytearray"
                    | "complex"
                    | "dict"
                    | "list"
                    | "tuple"
                    | "int"
                    | "float"
            )
        }
        Some(("datetime", rest)) => matches!(rest, "datetime" | "date" | "time" | "timedelta"),
        _ => matches!(
            name,
            "argparse.Namespace" | "_codecs.encode" | "pathlib.PosixPath" | "pathlib.WindowsPath"
        ),
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, FormatError> {
    match items.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(odd("a dict with a key that has no value")),
    }
}

/// Two's complement, least byte first, of any length; `None` beyond 64 bits.
fn whole_number(bytes: &[u8]) -> Option<i64> {
    let fill = if bytes.last().is_some_and(|last| last >> 7 == 1) {
        0xff
    } else {
        0
    };
    let mut wide = [fill; 8];
    let (low, high) = bytes.split_at(bytes.len().min(8));
    wide[..low.len()].copy_from_slice(low);
    let value = i64::from_le_bytes(wide);
    let fits =
        high.iter().all(|&byte| byte == fill) && (high.is_empty() || (value < 0) == (fill == 0xff));
    fits.then_some(value)
}

fn too_many() -> FormatError {
    FormatError::unsupported(format!("its pickle has more than {MAX_NODES} values"))
}

fn empty() -> FormatError {
    FormatError::damaged("its pickle ends too early or takes what is not there")
}

fn odd(what: &str) -> FormatError {
    FormatError::Damaged(format!("its pickle has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        read(bytes).unwrap_err().to_string()
    }

    /// `pickle.dumps({"a": 1, "b": [1.5, True, None], "c": b"xy", "d": {"e": -3}, "f": 2**80}, protocol)` of Python 3.11.
    #[test]
    fn plain_data_of_every_protocol() {
        let pickles: [&[u8]; 3] = [
            b"(dp0\nVa\np1\nI1\nsVb\np2\n(lp3\nF1.5\naI01\naNasVc\np4\nc_codecs\nencode\np5\n(Vxy\np6\nVlatin1\np7\ntp8\nRp9\n\
              sVd\np10\n(dp11\nVe\np12\nI-3\nssVf\np13\nL1208925819614629174706176L\ns.",
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01X\x01\x00\x00\x00bq\x02]q\x03(G?\xf8\x00\x00\x00\x00\x00\x00\x88NeX\x01\
              \x00\x00\x00cq\x04c_codecs\nencode\nq\x05X\x02\x00\x00\x00xyq\x06X\x06\x00\x00\x00latin1q\x07\x86q\x08Rq\tX\x01\x00\
              \x00\x00dq\n}q\x0bX\x01\x00\x00\x00eq\x0cJ\xfd\xff\xff\xffsX\x01\x00\x00\x00fq\r\x8a\x0b\x00\x00\x00\x00\x00\x00\x00\
              \x00\x00\x00\x01u.",
            b"\x80\x04\x95?\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94]\x94(G?\xf8\x00\x00\x00\x00\x00\x00\
              \x88Ne\x8c\x01c\x94C\x02xy\x94\x8c\x01d\x94}\x94\x8c\x01e\x94J\xfd\xff\xff\xffs\x8c\x01f\x94\x8a\x0b\x00\x00\x00\x00\
              \x00\x00\x00\x00\x00\x00\x01u.",
        ];
        for bytes in pickles {
            let pickled = read(bytes).unwrap();
            let item = |key| pickled.item(pickled.root, key).unwrap();
            assert_eq!(pickled.length, bytes.len());
            assert_eq!(item("a"), &Node::Int(1));
            let Node::List(list) = item("b") else {
                panic!("{:?}", item("b"));
            };
            assert_eq!(pickled.get(list[1]), &Node::Bool(true));
            let Node::Dict(inner) = item("d") else {
                panic!("{:?}", item("d"));
            };
            assert_eq!(pickled.get(inner[0].1), &Node::Int(-3));
            assert_eq!(item("f"), &Node::Other);
            // Wherever it is cut, it is an error.
            for end in 0..bytes.len() {
                assert!(read(&bytes[..end]).is_err());
            }
        }
    }

    #[test]
    fn whole_numbers_are_those_of_python() {
        for (bytes, value) in [
            (&[][..], Some(0)),
            (&[0xff], Some(-1)),
            (&[0xff, 0], Some(255)),
            (&[0, 0x80], Some(-32768)),
            (&[0xff; 20], Some(-1)),
            (&[0, 0, 0, 0, 0, 0, 0, 0x80, 0], None),
            (
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff],
                None,
            ),
            (
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
                Some(i64::MAX),
            ),
        ] {
            assert_eq!(whole_number(bytes), value, "{bytes:?}");
        }
    }

    #[test]
    fn what_would_run_code_is_refused_by_name() {
        // Protocols 0, 2 and 4 of an object whose __reduce__ is (os.system, ("touch /tmp/x",)).
        for bytes in [
            &b"cposix\nsystem\np0\n(Vtouch /tmp/x\np1\ntp2\nRp3\n."[..],
            b"\x80\x02cposix\nsystem\nq\x00X\x0c\x00\x00\x00touch /tmp/xq\x01\x85q\x02Rq\x03.",
            b"\x80\x04\x95\x25\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x0ctouch /tmp/x\x94\x85\x94R\x94.",
        ] {
            assert!(error(bytes).contains("`posix.system`"), "{}", error(bytes));
        }
        for name in [
            "builtins.eval",
            "builtins.getattr",
            "torch.load",
            "torch.hub.load",
            "torch._utils.x._rebuild_y",
            "torch.storage._load_from_bytes",
            "torch.int.eval",
            "__main__.Model",
            "os.system",
            "numpy.load",
        ] {
            assert!(!is_data(name), "{name}");
        }
        assert!(is_data("torch.float32") && is_data("torch.BFloat16Storage"));
    }

    #[test]
    fn bombs_take_no_more_than_their_length() {
        // A list in itself, doubled forty times over: shared, not copied.
        let mut bytes = b"\x80\x02]q\x00".to_vec();
        for _ in 0..40 {
            bytes.extend(b"h\x00h\x00\x86q\x00");
        }
        bytes.push(b'.');
        assert!(read(&bytes).unwrap().nodes.len() < 100);
        // A million tuples in each other: no recursion when they go.
        let mut deep = b"N".to_vec();
        deep.extend(vec![0x85; 1_000_000]);
        deep.push(b'.');
        drop(read(&deep).unwrap());
        // A list that holds itself.
        assert!(read(b"]q\x00h\x00a.").is_ok());
        assert!(error(&vec![b'N'; MAX_NODES + 1]).contains("values"));
        // A list that is made a dict over and over again.
        let mut copies = b"ccollections\nOrderedDict\nq\x01(".to_vec();
        copies.extend(b"NN\x86".repeat(1000));
        copies.extend(b"l\x85q\x02");
        copies.extend(b"h\x01h\x02R".repeat(2000));
        copies.push(b'.');
        assert!(error(&copies).contains("values"));
        let mut memos = b"N".to_vec();
        memos.extend(vec![0x94; MAX_NODES + 1]);
        assert!(error(&memos).contains("values"));
        // An object whose state is lists of lists of the same lists.
        let mut state = b"cargparse\nNamespace\n)R]q\x00".to_vec();
        for _ in 0..8 {
            state.push(b'(');
            state.extend(b"h\x00".repeat(100));
            state.extend(b"lq\x00");
        }
        state.extend(b"b.");
        assert!(read(&state).is_ok());
        let long = format!("ctorch._utils\n_rebuild_{}\n.", "x".repeat(1000));
        assert!(error(long.as_bytes()).contains("_rebuild_"));
        // Lengths that are not there.
        for bytes in [
            &b"X\xff\xff\xff\xffabc"[..],
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc",
            b"\x8b\xff\xff\xff\x7fabc",
            b"\x86.",
            b"(.",
            b"s.",
            b"K\x01(0.",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}

//! What `torch.save` writes: a pickle of the object, and its tensors' values beside it.
//!
//! Since PyTorch 1.6 a ZIP archive of stored entries, `NAME/data.pkl` and `NAME/data/KEY` for each storage. Before, five pickles
//! one after another (a magic number, the version, the machine, the object, the keys of its storages), then the storages.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use crate::pickle::{self, Id, MAX_PICKLE, Node, Pickled, Storage, View};
use crate::weights::Place;
use crate::zip::{Archive, Method};
use crate::{Dtype, FormatError, Stored};

/// 0x1950a86a20f9469cfc6c, least byte first, as pickles of protocol 2 have it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Most tensors that are listed, and most values that are looked at for them.
const MAX_TENSORS: usize = 100_000;
const MAX_VISITS: usize = 1 << 20;
/// Longest name of a tensor, with those of the dicts it is in.
const MAX_NAME: usize = 1000;
/// Deepest dict in a dict that is looked into.
const MAX_DEPTH: usize = 16;

/// A file of the newer kind.
#[derive(Debug)]
pub(crate) struct Zipped {
    archive: Archive<BufReader<File>>,
    /// `NAME/`
    root: String,
}

/// Opens a file of the newer kind.
pub(crate) fn open_zip(file: File) -> Result<(BTreeMap<String, Stored>, Zipped), FormatError> {
    let mut archive = Archive::open(BufReader::new(file))?;
    let root = archive
        .entries()
        .iter()
        .filter_map(|entry| entry.name.strip_suffix("data.pkl"))
        .filter(|root| root.is_empty() || root.ends_with('/'))
        .min_by_key(|root| root.len())
        .map(str::to_owned)
        .ok_or_else(|| {
            FormatError::unsupported(
                "a ZIP archive without `data.pkl`: not what `torch.save` writes (NumPy's .npz holds data sets)",
            )
        })?;
    if archive.find(&format!("{root}constants.pkl")).is_some() {
        return Err(FormatError::unsupported(
            "a TorchScript program, not weights\n\n\
             hint: `torch.save(torch.jit.load(FILE).state_dict(), ...)` writes its weights",
        ));
    }
    if let Some(packed) = archive
        .entries()
        .iter()
        .find(|entry| entry.name.starts_with(&root) && entry.method != Method::Stored)
    {
        let problem = format!(
            "`{}` is compressed, which `torch.save` does not do",
            packed.name
        );
        return Err(FormatError::Unsupported(problem));
    }
    if let Some(order) = archive.find(&format!("{root}byteorder"))
        && archive.read(&order, 64)? != b"little"
    {
        return Err(big_endian());
    }
    let object = archive
        .find(&format!("{root}data.pkl"))
        .expect("found above");
    let object = archive.read(&object, MAX_PICKLE)?;
    let tensors = list(&pickle::read(&object)?)?;
    Ok((tensors, Zipped { archive, root }))
}

impl Zipped {
    pub(crate) fn storage(
        &mut self,
        storage: &Storage,
        start: u64,
        length: u64,
    ) -> Result<Vec<u8>, FormatError> {
        let name = format!("{}data/{}", self.root, storage.key);
        let entry = self
            .archive
            .find(&name)
            .ok_or_else(|| FormatError::damaged(format!("its values, `{name}`, are missing")))?;
        if start == 0 && length == entry.size {
            // The whole of it: its checksum is looked at too.
            return self.archive.read(&entry, length);
        }
        self.archive.read_part(&entry, start, length)
    }
}

/// Whether a file that starts with `head` is of the older kind.
pub(crate) fn is_legacy(head: &[u8]) -> bool {
    let tar = head.get(257..262) == Some(b"ustar");
    let start = &head[..head.len().min(64)];
    !tar && head.first() == Some(&0x80) && start.windows(MAGIC.len()).any(|bytes| bytes == MAGIC)
}

/// A file of the older kind.
#[derive(Debug)]
pub(crate) struct Legacy {
    file: File,
    /// Where the count of a storage's elements is, which its bytes follow.
    places: HashMap<String, u64>,
}

/// Opens a file of the older kind.
pub(crate) fn open_legacy(
    mut file: File,
    length: u64,
) -> Result<(BTreeMap<String, Stored>, Legacy), FormatError> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    // The pickles come first; how long they are is known only when they have been read.
    (&mut file).take(MAX_PICKLE).read_to_end(&mut head)?;
    let mut at = 0;
    let mut next = || {
        let pickled = pickle::read(&head[at..])?;
        at += pickled.length;
        Ok::<_, FormatError>(pickled)
    };
    next()?;
    let version = next()?;
    if version.get(version.root) != &Node::Int(1001) {
        let problem = "its version is not 1001, the only one there was";
        return Err(FormatError::unsupported(problem));
    }
    let machine = next()?;
    if machine.item(machine.root, "little_endian") != Some(&Node::Bool(true)) {
        return Err(big_endian());
    }
    let object = next()?;
    let keys = next()?;
    let tensors = list(&object)?;
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    for stored in tensors.values() {
        if let (Place::View(view), Some(dtype)) = (&stored.place, stored.dtype) {
            let size = view.storage.elements.checked_mul(dtype.size() as u64);
            let size =
                size.ok_or_else(|| FormatError::damaged("a storage larger than the file"))?;
            sizes.insert(&view.storage.key, size);
        }
    }
    let Node::List(keys_in_order) = keys.get(keys.root) else {
        return Err(FormatError::damaged("its list of storages is no list"));
    };
    let mut place = at as u64;
    let mut places = HashMap::new();
    for &key in keys_in_order {
        let key = match keys.get(key) {
            Node::Text(key) => key.clone(),
            Node::Int(key) => key.to_string(),
            _ => return Err(FormatError::damaged("its list of storages has no keys")),
        };
        let size = *sizes.get(key.as_str()).ok_or_else(|| {
            FormatError::unsupported(format!(
                "its storage `{key}` belongs to no tensor that is read"
            ))
        })?;
        let end = place
            .checked_add(8)
            .and_then(|start| start.checked_add(size))
            .filter(|&end| end <= length)
            .ok_or_else(|| FormatError::damaged("its storages do not fit into the file"))?;
        places.insert(key, place);
        place = end;
    }
    Ok((tensors, Legacy { file, places }))
}

impl Legacy {
    pub(crate) fn storage(
        &mut self,
        storage: &Storage,
        start: u64,
        length: u64,
    ) -> Result<Vec<u8>, FormatError> {
        let place = *self
            .places
            .get(&storage.key)
            .ok_or_else(|| FormatError::damaged("its values are missing"))?;
        let mut count = [0; 8];
        self.file.seek(SeekFrom::Start(place))?;
        self.file.read_exact(&mut count)?;
        if u64::from_le_bytes(count) != storage.elements {
            return Err(FormatError::damaged(format!(
                "its storage has {} values, not {}",
                u64::from_le_bytes(count),
                storage.elements
            )));
        }
        // `start + length` lies in the storage, and that in the file.
        self.file.seek(SeekFrom::Start(place + 8 + start))?;
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// The bytes of a tensor in row-major order. `part` gives bytes of its storage by start and length.
pub(crate) fn read_view(
    view: &View,
    dtype: Dtype,
    part: impl FnOnce(u64, u64) -> Result<Vec<u8>, FormatError>,
) -> Result<Vec<u8>, FormatError> {
    let size = dtype.size();
    let values: usize = view.shape.iter().product();
    if values == 0 {
        return Ok(Vec::new());
    }
    // `list` made sure that it lies in its storage.
    let extent = extent(view).ok_or_else(|| FormatError::damaged("sizes beyond 64 bits"))?;
    let from = view.offset * size as u64;
    let bytes = part(from, (extent - view.offset) * size as u64)?;
    let mut row_major = 1;
    let contiguous = view
        .shape
        .iter()
        .zip(&view.strides)
        .rev()
        .all(|(&n, &stride)| {
            let expected = row_major;
            row_major *= n as u64;
            n == 1 || stride == expected
        });
    if contiguous {
        return Ok(bytes);
    }
    let mut out = Vec::with_capacity(values * size);
    let mut index = vec![0; view.shape.len()];
    for _ in 0..values {
        let element: u64 = index
            .iter()
            .zip(&view.strides)
            .map(|(&i, &stride)| i as u64 * stride)
            .sum();
        let at = element as usize * size;
        out.extend(&bytes[at..at + size]);
        for (i, &n) in index.iter_mut().zip(&view.shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    Ok(out)
}

/// One past the last element of its storage that a view has.
fn extent(view: &View) -> Option<u64> {
    if view.shape.contains(&0) {
        return Some(view.offset);
    }
    let steps = view.shape.iter().zip(&view.strides);
    steps
        .map(|(&n, &stride)| (n as u64 - 1).checked_mul(stride))
        .try_fold(view.offset, |last, step| last.checked_add(step?))?
        .checked_add(1)
}

/// Every tensor in the dicts and lists of a pickle, by its path.
fn list(pickled: &Pickled) -> Result<BTreeMap<String, Stored>, FormatError> {
    if !matches!(pickled.get(pickled.root), Node::Dict(_) | Node::List(_)) {
        return Err(FormatError::unsupported(
            "no state dict: what was saved is no dict\n\nhint: `torch.save(model.state_dict(), ...)`",
        ));
    }
    let mut walk = Walk {
        pickled,
        visits: 0,
        tensors: BTreeMap::new(),
    };
    walk.visit(pickled.root, "", 0)?;
    Ok(walk.tensors)
}

struct Walk<'a> {
    pickled: &'a Pickled,
    visits: usize,
    tensors: BTreeMap<String, Stored>,
}

impl Walk<'_> {
    fn visit(&mut self, id: Id, path: &str, depth: usize) -> Result<(), FormatError> {
        self.visits += 1;
        // The same dict may be in many places, in ever more of them with each level.
        if self.visits > MAX_VISITS || depth > MAX_DEPTH || self.tensors.len() > MAX_TENSORS {
            return Err(FormatError::unsupported(format!(
                "more than {MAX_TENSORS} tensors, or dicts in more than {MAX_DEPTH} dicts"
            )));
        }
        let under = |key: &str| match path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        match self.pickled.get(id) {
            Node::Dict(items) => {
                // A later item of the same key is the one that counts.
                let mut by_key = BTreeMap::new();
                for &(key, value) in items {
                    let key = match self.pickled.get(key) {
                        Node::Text(key) if path.len() + key.len() > MAX_NAME => {
                            let problem =
                                format!("a tensor's name has more than {MAX_NAME} letters");
                            return Err(FormatError::Unsupported(problem));
                        }
                        Node::Text(key) => key.clone(),
                        Node::Int(key) => key.to_string(),
                        _ => continue,
                    };
                    by_key.insert(key, value);
                }
                for (key, value) in by_key {
                    self.visit(value, &under(&key), depth + 1)?;
                }
            }
            Node::List(items) => {
                for (i, &item) in items.iter().enumerate() {
                    self.visit(item, &under(&i.to_string()), depth + 1)?;
                }
            }
            Node::Tensor(view) => {
                let fits = extent(view).is_some_and(|extent| extent <= view.storage.elements);
                if !fits {
                    return Err(FormatError::damaged(format!(
                        "`{path}` of shape {:?} is larger than its storage of {} values",
                        view.shape, view.storage.elements
                    )));
                }
                self.add(
                    path,
                    &view.shape,
                    view.storage.dtype,
                    Place::View(view.clone()),
                )?;
            }
            Node::Foreign(kind) => self.add(path, &[], None, Place::None(kind.clone()))?,
            _ => {}
        }
        Ok(())
    }

    fn add(
        &mut self,
        path: &str,
        shape: &[usize],
        dtype: Option<Dtype>,
        place: Place,
    ) -> Result<(), FormatError> {
        let stored = Stored {
            shape: shape.to_vec(),
            dtype,
            place,
        };
        match self.tensors.insert(path.to_owned(), stored) {
            None => Ok(()),
            Some(_) => Err(FormatError::damaged(format!(
                "two tensors are named `{path}`"
            ))),
        }
    }
}

fn big_endian() -> FormatError {
    FormatError::unsupported("written on a big-endian machine, which is not read")
}

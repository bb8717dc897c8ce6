//! Weights files: named tensors, whose values are read one at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};

use crate::torch::{self, Legacy, Zipped};
use crate::{FormatError, safetensor};

/// Largest weights file that is read: more than any network here with the state of its training, less than memory.
pub const MAX_FILE: u64 = 8 << 30;

/// Type of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether it is one of the floating-point types.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// That of `torch.FloatStorage` and so on.
    pub(crate) fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::BF16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Little-endian bytes as `f32`: the nearest, infinite beyond its range.
    pub(crate) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|&raw| value(raw)).collect()
        }
        match self {
            Self::F64 => each(bytes, |raw| f64::from_le_bytes(raw) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |raw| f16::from_le_bytes(raw).to_f32()),
            Self::BF16 => each(bytes, |raw| bf16::from_le_bytes(raw).to_f32()),
            Self::I64 => each(bytes, |raw| i64::from_le_bytes(raw) as f32),
            Self::I32 => each(bytes, |raw| i32::from_le_bytes(raw) as f32),
            Self::I16 => each(bytes, |raw| i16::from_le_bytes(raw).into()),
            Self::I8 => each(bytes, |[raw]| (raw as i8).into()),
            Self::U8 | Self::Bool => each(bytes, |[raw]| raw.into()),
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::Bool => "bool",
        })
    }
}

/// What a file says of one of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its sizes, outermost first; none for a single number.
    pub shape: Vec<usize>,
    /// Type of its values; `None` if they are of a kind that is not read (sparse, quantised, complex, 8-bit float).
    pub dtype: Option<Dtype>,
    pub(crate) place: Place,
}

impl Stored {
    /// Number of its values.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Where values are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// Bytes of a safetensors file, from here on.
    At(u64),
    /// Elements of a storage.
    View(crate::pickle::View),
    /// Not to be read, and why.
    None(String),
}

#[derive(Debug)]
enum Source {
    Safetensors(File),
    Zipped(Zipped),
    Legacy(Legacy),
}

/// A weights file that is open: the list of its tensors is in memory, their values are not.
#[derive(Debug)]
pub struct WeightsFile {
    tensors: BTreeMap<String, Stored>,
    source: Source,
    length: u64,
}

impl WeightsFile {
    /// Opens a safetensors file or what `torch.save` wrote (since PyTorch 1.6, or before) of a state dict or of a checkpoint that
    /// holds some. Tensors in dicts and lists have names such as `state_dict.conv1.weight` and `params.0`.
    ///
    /// # Errors
    /// [`FormatError`]: not such a file, cut short, more than [`MAX_FILE`], with sizes that do not lie in it, or with a pickle that
    /// asks for anything but data.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > MAX_FILE {
            let problem = format!("{length} bytes are more than any network here has");
            return Err(FormatError::Unsupported(problem));
        }
        let mut head = Vec::new();
        (&mut file).take(512).read_to_end(&mut head)?;
        file.seek(SeekFrom::Start(0))?;
        let (tensors, source) = if head.starts_with(b"PK\x03\x04") {
            let (tensors, source) = torch::open_zip(file)?;
            (tensors, Source::Zipped(source))
        } else if torch::is_legacy(&head) {
            let (tensors, source) = torch::open_legacy(file, length)?;
            (tensors, Source::Legacy(source))
        } else if head.get(8) == Some(&b'{') {
            (
                safetensor::open(&mut file, length)?,
                Source::Safetensors(file),
            )
        } else {
            return Err(FormatError::unsupported(format!(
                "{}; safetensors files and what `torch.save` wrote are read",
                what_it_is(&head)
            )));
        };
        for (name, stored) in &tensors {
            let fits = stored
                .shape
                .iter()
                .try_fold(stored.dtype.map_or(1, Dtype::size), |n, &size| {
                    n.checked_mul(size)
                })
                .is_some_and(|bytes| bytes as u64 <= length);
            if !fits {
                return Err(FormatError::damaged(format!(
                    "`{name}` of shape {:?} is larger than the file",
                    stored.shape
                )));
            }
        }
        Ok(Self {
            tensors,
            source,
            length,
        })
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Its tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Stored> {
        &self.tensors
    }

    /// The values of a tensor as `f32`, row-major.
    ///
    /// # Errors
    /// If there is no such tensor, it is of a kind that is not read, or its bytes are not there.
    pub fn read(&mut self, name: &str) -> Result<Vec<f32>, FormatError> {
        let stored = self
            .tensors
            .get(name)
            .ok_or_else(|| FormatError::unsupported(format!("there is no tensor `{name}`")))?;
        let named = |error: FormatError| match error {
            FormatError::Damaged(problem) => FormatError::Damaged(format!("`{name}`: {problem}")),
            other => other,
        };
        let (dtype, bytes) = match (&stored.place, stored.dtype) {
            (Place::None(kind), _) => {
                let problem = format!("`{name}` is {kind}, which is not read");
                return Err(FormatError::Unsupported(problem));
            }
            (_, None) => {
                let problem = format!("the values of `{name}` are of a type that is not read");
                return Err(FormatError::Unsupported(problem));
            }
            (Place::At(start), Some(dtype)) => {
                let mut bytes = vec![0; stored.values() * dtype.size()];
                let Source::Safetensors(file) = &mut self.source else {
                    unreachable!("a place of another kind of file");
                };
                file.seek(SeekFrom::Start(*start))?;
                file.read_exact(&mut bytes)?;
                (dtype, bytes)
            }
            (Place::View(view), Some(dtype)) => {
                let bytes = torch::read_view(view, dtype, |start, length| match &mut self.source {
                    Source::Zipped(source) => source.storage(&view.storage, start, length),
                    Source::Legacy(source) => source.storage(&view.storage, start, length),
                    Source::Safetensors(_) => unreachable!("a view in another kind of file"),
                });
                (dtype, bytes.map_err(named)?)
            }
        };
        Ok(dtype.to_f32(&bytes))
    }
}

fn what_it_is(head: &[u8]) -> &'static str {
    let tar = head.get(257..262) == Some(b"ustar");
    match head {
        [] => "the file is empty",
        _ if tar => "a TAR archive",
        _ if crate::onnx::is_onnx(head) => "an ONNX model, not weights alone",
        _ if head.starts_with(b"\x89HDF") => "an HDF5 file (Keras)",
        _ if head.starts_with(b"\x93NUMPY") => "a NumPy array",
        [0x80, 2..=5, ..] => "a plain pickle",
        _ => "not a weights file that is known here",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::zip::{Archive, Writer};

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name)
    }

    fn open_bytes(bytes: &[u8]) -> Result<WeightsFile, FormatError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        WeightsFile::open(file.path())
    }

    fn problem(bytes: &[u8]) -> String {
        open_bytes(bytes)
            .expect_err("a bad file was opened")
            .to_string()
    }

    /// `checkpoint.pth` with other entries: what `change` makes of name and bytes.
    fn repacked(change: impl Fn(&str, Vec<u8>) -> Option<(String, Vec<u8>)>) -> Vec<u8> {
        let mut archive = Archive::open(File::open(golden("checkpoint.pth")).unwrap()).unwrap();
        let mut writer = Writer::new(Vec::new());
        for entry in archive.entries().to_vec() {
            let bytes = archive.read(&entry, 1 << 20).unwrap();
            if let Some((name, bytes)) = change(&entry.name, bytes) {
                writer.add(&name, &[&bytes]).unwrap();
            }
        }
        writer.finish().unwrap()
    }

    /// The checkpoint with another pickle.
    fn pickled(pickle: &[u8]) -> Vec<u8> {
        repacked(|name, bytes| {
            let bytes = if name.ends_with("data.pkl") {
                pickle.to_vec()
            } else {
                bytes
            };
            Some((name.to_owned(), bytes))
        })
    }

    /// Values as `scripts/golden/formats.py` prints them: PyTorch's own.
    #[test]
    fn tensors_of_pytorch_are_read_as_pytorch_reads_them() {
        let eighths = |values: &[i32]| values.iter().map(|&v| v as f32 / 8.0).collect::<Vec<_>>();
        let turned: Vec<i32> = (0..6)
            .flat_map(|column| (0..4).map(move |row| 6 * row + column))
            .collect();
        let expected: [(&str, &[usize], Dtype, Vec<f32>); 11] = [
            (
                "single",
                &[4, 6],
                Dtype::F32,
                eighths(&Vec::from_iter(0..24)),
            ),
            ("turned", &[6, 4], Dtype::F32, eighths(&turned)),
            (
                "part",
                &[2, 3],
                Dtype::F32,
                eighths(&[8, 9, 10, 14, 15, 16]),
            ),
            ("repeated", &[2, 3], Dtype::F32, vec![0.0; 6]),
            (
                "double",
                &[2],
                Dtype::F64,
                vec![0.333_333_34, f32::NEG_INFINITY],
            ),
            (
                "half",
                &[3],
                Dtype::F16,
                vec![0.333_251_95, 65504.0, 5.960_464_5e-8],
            ),
            (
                "brain",
                &[2],
                Dtype::BF16,
                vec![0.333_984_38, -3.004_055_3e38],
            ),
            ("scalar", &[], Dtype::F32, vec![2.5]),
            ("none", &[0, 3], Dtype::F32, vec![]),
            ("parameter", &[2], Dtype::F32, vec![1.5, -2.5]),
            ("count", &[], Dtype::I64, vec![7.0]),
        ];
        for file in ["checkpoint.pth", "legacy.pth"] {
            let mut file = WeightsFile::open(&golden(file)).unwrap();
            for (name, shape, dtype, values) in &expected {
                let name = format!("state_dict.{name}");
                let stored = &file.tensors()[&name];
                assert_eq!(
                    (stored.shape.as_slice(), stored.dtype),
                    (*shape, Some(*dtype))
                );
                assert_eq!(&file.read(&name).unwrap(), values, "{name}");
            }
            assert_eq!(file.read("history.0").unwrap(), [0.25]);
            let momentum = "optimizer.state.0.momentum_buffer";
            assert_eq!(file.read(momentum).unwrap(), [1.0]);
            assert_eq!(file.tensors().len(), 11 + 1 + 2);
            assert!(file.read("state_dict.absent").is_err());
        }
    }

    #[test]
    fn safetensors_of_every_float_type_are_read() {
        use safetensors::tensor::TensorView;
        let values = [
            (
                "double",
                safetensors::Dtype::F64,
                0.5_f64.to_le_bytes().to_vec(),
            ),
            (
                "single",
                safetensors::Dtype::F32,
                0.5_f32.to_le_bytes().to_vec(),
            ),
            (
                "half",
                safetensors::Dtype::F16,
                f16::from_f32(0.5).to_le_bytes().to_vec(),
            ),
            (
                "brain",
                safetensors::Dtype::BF16,
                bf16::from_f32(0.5).to_le_bytes().to_vec(),
            ),
            ("eight", safetensors::Dtype::F8_E4M3, vec![1]),
        ];
        let views = values.iter().map(|(name, dtype, bytes)| {
            (*name, TensorView::new(*dtype, vec![1, 1], bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        let mut file = open_bytes(&bytes).unwrap();
        for name in ["double", "single", "half", "brain"] {
            assert_eq!(file.tensors()[name].shape, [1, 1]);
            assert_eq!(file.read(name).unwrap(), [0.5], "{name}");
        }
        assert!(
            file.read("eight")
                .unwrap_err()
                .to_string()
                .contains("`eight`")
        );
        for end in [0, 7, 9, 100, bytes.len() - 1] {
            open_bytes(&bytes[..end]).expect_err("cut short");
        }
        let mut more = bytes.clone();
        more.push(0);
        assert!(problem(&more).contains("fill"));
        let absurd =
            br#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#;
        let mut file = (absurd.len() as u64).to_le_bytes().to_vec();
        file.extend(absurd);
        file.extend([0; 4]);
        open_bytes(&file).expect_err("an absurd shape");
        let mut huge = u64::MAX.to_le_bytes().to_vec();
        huge.extend(b"{}");
        assert!(problem(&huge).contains("header"));
    }

    #[test]
    fn hostile_checkpoints_are_refused() {
        // What `pickle.dumps` writes of a state dict and an object whose __reduce__ is (os.system, ("touch /tmp/x",)).
        let code =
            b"\x80\x02}q\x00X\x01\x00\x00\x00acposix\nsystem\nX\x0c\x00\x00\x00touch /tmp/x\x85Rs.";
        let message = problem(&pickled(code));
        assert!(
            message.contains("`posix.system`") && message.contains("hint"),
            "{message}"
        );

        let tensor = |elements: &str, offset: &str, sizes: &str, strides: &str| {
            format!(
                "(dVa\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n{elements}tQ\
                 {offset}({sizes}t({strides}tI00\nNtRs."
            )
        };
        let read = |pickle: String| {
            let mut file = open_bytes(&pickled(pickle.as_bytes()))?;
            file.read("a")
        };
        assert_eq!(
            read(tensor("I24\n", "I2\n", "I2\n", "I1\n")).unwrap(),
            [0.25, 0.375]
        );
        for (elements, offset, sizes, strides) in [
            // Larger than the storage that is stated, than the one that is there, than the file, than 64 bits.
            ("I24\n", "I0\n", "I25\n", "I1\n"),
            ("I1000\n", "I0\n", "I100\n", "I1\n"),
            (
                "I9000000000000000000\n",
                "I0\n",
                "I4000000000000000000\n",
                "I1\n",
            ),
            (
                "I9000000000000000000\n",
                "I9000000000000000000\n",
                "I2\n",
                "I9000000000000000000\n",
            ),
            (
                "I24\n",
                "I0\n",
                "I100000\nI100000\nI100000\n",
                "I0\nI0\nI0\n",
            ),
            ("I24\n", "I-1\n", "I2\n", "I1\n"),
            ("I24\n", "I0\n", "I-2\n", "I1\n"),
            ("I24\n", "I0\n", "I2\nI2\n", "I1\n"),
            ("I-24\n", "I0\n", "I2\n", "I1\n"),
        ] {
            let pickle = tensor(elements, offset, sizes, strides);
            read(pickle.clone()).expect_err(&pickle);
        }
        // A dict in two places of a dict in two places, and so on: more tensors than there is memory for.
        let mut bomb = tensor("I24\n", "I0\n", "I2\n", "I1\n");
        bomb.pop();
        bomb.push_str("p0\n0");
        for _ in 0..30 {
            bomb.push_str("(dVa\ng0\nsVb\ng0\nsp0\n0");
        }
        bomb.push_str("g0\n.");
        assert!(problem(&pickled(bomb.as_bytes())).contains("more than"));
    }

    #[test]
    fn headers_of_safetensors_that_lie_or_never_end_are_refused() {
        let file = |header: &str, data: usize| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.resize(bytes.len() + data, 0);
            bytes
        };
        let huge = r#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}"#;
        problem(&file(huge, 4));
        let wrapped =
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        problem(&file(wrapped, 0));
        // A million tensors of nothing.
        let mut header = String::from("{");
        for name in 0..1_000_000 {
            let comma = if name == 0 { "" } else { "," };
            header +=
                &format!(r#"{comma}"{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
        }
        header.push('}');
        assert!(problem(&file(&header, 0)).contains("header"));
        let mut longer = file(huge, 4);
        longer[0] = 0xff;
        longer[7] = 0xff;
        problem(&longer);
    }

    #[test]
    fn other_files_are_told_apart() {
        assert!(problem(b"").contains("empty"));
        assert!(problem(b"not weights").contains("not a weights file"));
        assert!(problem(b"\x80\x02}.").contains("plain pickle"));
        assert!(problem(b"\x93NUMPY\x01\x00").contains("NumPy"));
        let without =
            repacked(|name, bytes| (!name.ends_with("data.pkl")).then(|| (name.to_owned(), bytes)));
        assert!(problem(&without).contains("data.pkl"));
        let script = repacked(|name, bytes| match name.strip_suffix("version") {
            Some(root) => Some((format!("{root}constants.pkl"), bytes)),
            None => Some((name.to_owned(), bytes)),
        });
        assert!(problem(&script).contains("TorchScript"));
        let big = repacked(|name, bytes| {
            let bytes = if name.ends_with("byteorder") {
                b"big".to_vec()
            } else {
                bytes
            };
            Some((name.to_owned(), bytes))
        });
        assert!(problem(&big).contains("big-endian"));
        let absent =
            repacked(|name, bytes| (!name.ends_with("data/0")).then(|| (name.to_owned(), bytes)));
        let mut file = open_bytes(&absent).unwrap();
        let message = file.read("state_dict.single").unwrap_err().to_string();
        assert!(
            message.contains("`state_dict.single`") && message.contains("missing"),
            "{message}"
        );
        assert!(WeightsFile::open(Path::new("/nonexistent/file")).is_err());
    }

    /// Whatever is damaged: an error or other values, never a panic, and never much memory.
    #[test]
    fn damaged_files_do_not_panic() {
        for name in ["checkpoint.pth", "legacy.pth"] {
            let good = std::fs::read(golden(name)).unwrap();
            let mut bad: Vec<Vec<u8>> = (0..good.len())
                .step_by(101)
                .map(|end| good[..end].to_vec())
                .collect();
            for at in (0..good.len()).step_by(17) {
                let mut changed = good.clone();
                changed[at] = [0, 0xff, b'.', changed[at] ^ 0x40][at % 4];
                bad.push(changed);
            }
            for bytes in bad {
                if let Ok(mut file) = open_bytes(&bytes) {
                    for name in file.tensors().keys().cloned().collect::<Vec<_>>() {
                        let _ = file.read(&name);
                    }
                }
            }
        }
    }
}

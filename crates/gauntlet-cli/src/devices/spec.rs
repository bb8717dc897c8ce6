use std::fmt;
use std::str::FromStr;

use super::Backend;

/// What `--device` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spec {
    /// A real GPU if one answers, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU backend, and which of its devices.
    Gpu(Backend, Option<usize>),
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index)),
            None => (text, None),
        };
        let wrong = || {
            format!(
                "`{text}` is no device: write `auto`, `cpu`, `vulkan`, `vulkan:N`, `cuda` or `cuda:N`"
            )
        };
        let index = index
            .map(|index| index.parse().map_err(|_| wrong()))
            .transpose()?;
        match (name, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("vulkan", index) => Ok(Self::Gpu(Backend::Vulkan, index)),
            ("cuda", index) => Ok(Self::Gpu(Backend::Cuda, index)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(backend, None) => f.write_str(backend.name()),
            Self::Gpu(backend, Some(index)) => write!(f, "{}:{index}", backend.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_documented() {
        assert_eq!("auto".parse(), Ok(Spec::Auto));
        assert_eq!("cpu".parse(), Ok(Spec::Cpu));
        assert_eq!("vulkan".parse(), Ok(Spec::Gpu(Backend::Vulkan, None)));
        assert_eq!("cuda:3".parse(), Ok(Spec::Gpu(Backend::Cuda, Some(3))));
        for text in ["auto", "cpu", "vulkan", "cuda:3"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "gpu",
            "cpu:0",
            "auto:1",
            "vulkan:",
            "vulkan:-1",
            "vulkan:x",
        ] {
            assert!(bad.parse::<Spec>().is_err(), "{bad}");
        }
    }
}

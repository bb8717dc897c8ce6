//! Where to compute: what this machine has, and which of it a run gets.

mod probe;
mod spec;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::panics::expected;

pub(crate) use probe::answer as answer_probe;
pub(crate) use spec::Spec;

/// A way to compute that is chosen at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// The CPU, by burn's `flex`.
    Cpu,
    /// NVIDIA GPUs by CUDA.
    Cuda,
    /// GPUs of all vendors by Vulkan.
    Vulkan,
}

impl Backend {
    /// Its name in `--device`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
        }
    }

    /// Whether this build has it.
    fn built(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Vulkan => cfg!(feature = "vulkan"),
        }
    }

    /// Its devices, in the order `--device` counts them. Asks the driver, which may do anything: see [`probe`].
    fn enumerate(self) -> Vec<Device> {
        #[cfg(any(feature = "cuda", feature = "vulkan"))]
        use burn::tensor::DeviceType;
        match self {
            Self::Cpu => vec![Device::flex()],
            #[cfg(feature = "cuda")]
            Self::Cuda => Device::enumerate(DeviceType::Cuda).into_vec(),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Device::enumerate(DeviceType::Vulkan).into_vec(),
            #[allow(unreachable_patterns)]
            _ => Vec::new(),
        }
    }
}

/// One device of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// What `--device` calls it: `vulkan:0`.
    pub(crate) id: String,
    /// What it calls itself.
    pub(crate) name: String,
    /// `CPU`, `discrete GPU`, `software driver`, ...
    pub(crate) kind: String,
    /// Whether it is a program that plays a GPU: `auto` never takes it.
    pub(crate) software: bool,
    /// Why it cannot be used, if it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

/// A backend, and what it found or why it found nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Survey {
    pub(crate) backend: Backend,
    pub(crate) devices: Vec<Found>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unavailable: Option<String>,
}

/// Asks `backend` what it has.
pub(crate) fn survey(backend: Backend) -> Survey {
    let result = match backend {
        Backend::Cpu => Ok(vec![cpu()]),
        _ if !backend.built() => Err(format!(
            "not in this build; it is the Cargo feature `{}`",
            backend.name()
        )),
        _ => probe::ask(backend, None),
    };
    let (devices, unavailable) = match result {
        Ok(devices) if devices.is_empty() => (devices, Some(none_found(backend).to_owned())),
        Ok(devices) => (devices, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    Survey {
        backend,
        devices,
        unavailable,
    }
}

fn none_found(backend: Backend) -> &'static str {
    match backend {
        Backend::Cuda => "no NVIDIA GPU or no driver (`nvidia-smi` tells)",
        _ => {
            "no driver answered; it needs a GPU, its driver and the loader `libvulkan.so.1` (Debian: `libvulkan1`)"
        }
    }
}

fn cpu() -> Found {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model
        .and_then(|line| line.split_once(':'))
        .map(|(_, name)| name.trim());
    let model = model.unwrap_or(std::env::consts::ARCH);
    Found {
        id: "cpu".to_owned(),
        name: format!("{model}, {threads} threads"),
        kind: "CPU".to_owned(),
        software: false,
        problem: None,
    }
}

/// The device that a run got.
#[derive(Clone, Debug)]
pub(crate) struct Picked {
    /// A plain device, without autodiff.
    pub(crate) device: Device,
    /// What is known of it.
    pub(crate) found: Found,
    /// What a person should know of the choice.
    pub(crate) note: Option<String>,
}

impl Picked {
    /// Whether the CPU backend computes.
    pub(crate) fn is_cpu(&self) -> bool {
        self.found.id == "cpu"
    }

    /// `vulkan:0 (NVIDIA H100 PCIe)`
    pub(crate) fn label(&self) -> String {
        format!("{} ({})", self.found.id, self.found.name)
    }
}

/// The device that `spec` names. `auto` is the first real GPU that answers, else the CPU; never a software driver.
///
/// # Errors
/// If there is no such device, with what there is.
pub(crate) fn pick(spec: Spec) -> Result<Picked, Failure> {
    match spec {
        Spec::Cpu => Ok(on_cpu(None)),
        Spec::Auto => Ok(automatic()),
        Spec::Gpu(backend, index) => named(backend, index),
    }
}

fn on_cpu(note: Option<String>) -> Picked {
    Picked {
        device: Device::flex(),
        found: cpu(),
        note,
    }
}

fn automatic() -> Picked {
    let mut notes = Vec::new();
    for backend in [Backend::Cuda, Backend::Vulkan] {
        if !backend.built() {
            continue;
        }
        let devices = probe::ask(backend, None).unwrap_or_else(|problem| {
            notes.push(format!("{} is not used: {problem}", backend.name()));
            Vec::new()
        });
        for (index, found) in devices.iter().enumerate() {
            let opened = match &found.problem {
                Some(problem) => Err(problem.clone()),
                None if found.software => continue,
                None => open(backend, index),
            };
            match opened {
                Ok(device) => {
                    return Picked {
                        device,
                        found: found.clone(),
                        note: None,
                    };
                }
                Err(problem) => notes.push(format!(
                    "{} ({}) is not used: {problem}",
                    found.id, found.name
                )),
            }
        }
    }
    on_cpu((!notes.is_empty()).then(|| notes.join("\n")))
}

fn named(backend: Backend, index: Option<usize>) -> Result<Picked, Failure> {
    let survey = survey(backend);
    let name = backend.name();
    if let Some(problem) = &survey.unavailable {
        return Err(Failure::request(format!(
            "no `{name}` device: {problem}\n\nhint: `gauntlet devices` lists what there is"
        )));
    }
    let usable = |found: &Found| found.problem.is_none();
    let index = index.unwrap_or_else(|| {
        let real = survey
            .devices
            .iter()
            .position(|found| usable(found) && !found.software);
        real.or_else(|| survey.devices.iter().position(usable))
            .unwrap_or(0)
    });
    let Some(found) = survey.devices.get(index) else {
        let last = survey.devices.len() - 1;
        return Err(Failure::request(format!(
            "no device `{name}:{index}`: the last is `{name}:{last}`\n\nhint: `gauntlet devices` lists them"
        )));
    };
    let problem = if found.software && usable(found) {
        probe::prove(backend, index).err()
    } else {
        found.problem.clone()
    };
    if let Some(problem) = problem {
        return Err(Failure::request(format!(
            "{} ({}) cannot be used: {problem}\n\nhint: `gauntlet devices` lists what there is",
            found.id, found.name
        )));
    }
    let device = open(backend, index).map_err(Failure::running)?;
    let note = found.software.then(|| {
        format!(
            "{} ({}) is a software driver: slower than `--device cpu`",
            found.id, found.name
        )
    });
    Ok(Picked {
        device,
        found: found.clone(),
        note,
    })
}

/// Opens a device that answered in the probe.
fn open(backend: Backend, index: usize) -> Result<Device, String> {
    let devices = expected(|| backend.enumerate())?;
    let gone = || "it answered a moment ago and is gone now".to_owned();
    devices.into_iter().nth(index).ok_or_else(gone)
}

//! Asks a backend what it has, in a process of its own: a driver that is missing panics deep inside, a broken one crashes
//! or hangs, and none of that may end a run on the CPU.

use std::io::Read;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};

use super::{Backend, Found};
use crate::panics::expected;
use crate::program;

/// The hidden command that answers.
pub(crate) const COMMAND: &str = "probe-backend";

/// A cold NVIDIA driver takes seconds to wake; nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets device `index` of `backend`, a software driver, prove that it computes right.
///
/// # Errors
/// Why it is not to be trusted.
pub(super) fn prove(backend: Backend, index: usize) -> Result<(), String> {
    let devices = ask(backend, Some(index))?;
    match devices.into_iter().nth(index) {
        Some(found) => found.problem.map_or(Ok(()), Err),
        None => Err("it answered a moment ago and is gone now".to_owned()),
    }
}

/// What `backend` has, as told by a child process. Its GPUs prove that they compute right; software drivers are slow at that
/// and seldom wanted, so only the one at `software` does.
///
/// # Errors
/// Why it could not be told.
pub(super) fn ask(backend: Backend, software: Option<usize>) -> Result<Vec<Found>, String> {
    let unable = |error: std::io::Error| format!("the probe could not be started: {error}");
    let mut child = program::command()
        .map_err(unable)?
        .args([COMMAND, backend.name()])
        .args(software.map(|index| index.to_string()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(unable)?;
    let mut pipe = child.stdout.take().expect("stdout is piped");
    let reader = thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text)
            .map(|_| text)
            .unwrap_or_default()
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "its driver did not answer within {} s",
                    PATIENCE.as_secs()
                ));
            }
        }
    };
    let text = reader.join().unwrap_or_default();
    // Drivers talk to stdout too; the answer is the last line.
    let answer = text.lines().last().unwrap_or_default();
    serde_json::from_str::<Result<Vec<Found>, String>>(answer)
        .unwrap_or_else(|_| Err(format!("its driver crashed when asked ({status})")))
}

/// Answers [`ask`], in the child: one line of JSON.
pub(crate) fn answer(backend: Backend, software: Option<usize>) {
    let found = expected(|| backend.enumerate()).map(|devices| {
        let devices = devices.into_iter().enumerate();
        devices
            .map(|(index, device)| {
                let mut found = describe(backend, index, &device);
                if found.problem.is_none() && (!found.software || software == Some(index)) {
                    found.problem = expected(|| computes(&device)).and_then(|fine| fine).err();
                }
                found
            })
            .collect::<Vec<_>>()
    });
    crate::output::print(serde_json::to_string(&found).expect("plain structs serialise"));
}

fn describe(backend: Backend, index: usize, device: &Device) -> Found {
    let (kind, software) = kind(backend, &format!("{device:?}"));
    let mut found = Found {
        id: format!("{}:{index}", backend.name()),
        name: kind.to_owned(),
        kind: kind.to_owned(),
        software,
        problem: None,
    };
    match expected(|| name(device)) {
        Ok(name) => {
            found.software |= ["llvmpipe", "lavapipe", "swiftshader"]
                .iter()
                .any(|known| name.to_lowercase().contains(known));
            if found.software {
                found.kind = "software driver".to_owned();
            }
            found.name = name;
        }
        Err(problem) => found.problem = Some(problem),
    }
    found
}

#[cfg(any(feature = "cuda", feature = "vulkan"))]
fn name(device: &Device) -> String {
    let identity = device.identity();
    identity.map_or_else(|| "unnamed".to_owned(), |identity| identity.name)
}

#[cfg(not(any(feature = "cuda", feature = "vulkan")))]
fn name(_: &Device) -> String {
    "unnamed".to_owned()
}

/// What a device is, by the kind of adapter its driver reports.
fn kind(backend: Backend, device: &str) -> (&'static str, bool) {
    if backend == Backend::Cuda {
        return ("NVIDIA GPU", false);
    }
    let kinds = [
        ("DiscreteGpu", "discrete GPU"),
        ("IntegratedGpu", "integrated GPU"),
        ("VirtualGpu", "virtual GPU"),
        ("Cpu", "software driver"),
    ];
    let known = kinds.iter().find(|(word, _)| device.contains(word));
    known.map_or(("GPU", false), |(word, kind)| (kind, *word == "Cpu"))
}

/// A product of matrices that a working device gets right: there are drivers that add well and multiply to zero, without a
/// word. Small integers, so that every order of summing gives the same.
fn computes(device: &Device) -> Result<(), String> {
    const SIZE: usize = 65;
    let entry = |row: usize, column: usize| ((3 * row + 5 * column) % 7) as f32 - 3.0;
    let values: Vec<f32> = (0..SIZE * SIZE)
        .map(|at| entry(at / SIZE, at % SIZE))
        .collect();
    let matrix = Tensor::<2>::from_data(TensorData::new(values, [SIZE, SIZE]), device);
    let product = matrix.clone().matmul(matrix.transpose()).add_scalar(0.5);
    let product: Vec<f32> = product
        .try_into_vec_as()
        .map_err(|error| error.to_string())?;
    let wrong = (0..SIZE * SIZE).filter(|at| {
        let (row, column) = (at / SIZE, at % SIZE);
        let exact: f32 = (0..SIZE).map(|k| entry(row, k) * entry(column, k)).sum();
        product[*at] != exact + 0.5
    });
    match wrong.count() {
        0 => Ok(()),
        count => Err(format!(
            "it computes wrongly: {count} of {} values of a matrix product differ from the CPU's",
            SIZE * SIZE
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_drivers_are_told_apart() {
        let kind = |device| super::kind(Backend::Vulkan, device);
        assert_eq!(
            kind("Device<Cube(Wgpu(WgpuDevice { kind: Cpu, backend: Vulkan }))>"),
            ("software driver", true)
        );
        assert_eq!(
            kind("Device<Cube(Wgpu(WgpuDevice { kind: DiscreteGpu(0), backend: Vulkan }))>"),
            ("discrete GPU", false)
        );
    }

    #[test]
    fn a_device_is_tried_before_it_is_trusted() {
        assert_eq!(computes(&Device::flex()), Ok(()));
    }
}

//! `gauntlet bench`: how fast this machine computes what adversarial training is made of, and what bounds it.

mod ceilings;
mod clock;
mod compare;
mod flops;
mod kernels;
mod memory;
mod report;
mod train;

use crate::args::{Bench, BenchOutput};
use crate::devices::{self, Backend, Picked, Spec, survey};
use crate::failure::Failure;
use crate::output::{print, say};

use compare::{Comparison, Gate};
use report::Report;

/// Measures kernels or training steps, or compares what was measured before.
pub(crate) fn bench(command: Bench, quiet: bool) -> Result<(), Failure> {
    match command {
        Bench::Kernels(args) => {
            threads(args.output.threads)?;
            let old = old(&args.output)?;
            let devices = picked(&args.device, quiet)?;
            let report = kernels::measure(&args, &devices, quiet)?;
            tell(&report, old.as_ref(), &args.output)
        }
        Bench::Train(args) => {
            threads(args.output.threads)?;
            let old = old(&args.output)?;
            let devices = picked(&args.device, quiet)?;
            let report = train::measure(&args, &devices, quiet)?;
            tell(&report, old.as_ref(), &args.output)
        }
        Bench::Compare(args) => {
            let (new, old) = (Report::read(&args.new)?, Report::read(&args.old)?);
            let comparison = Comparison::of(&new, &old);
            print(comparison.table());
            comparison.judge(&args.require)
        }
    }
}

fn old(output: &BenchOutput) -> Result<Option<Report>, Failure> {
    output.compare.as_deref().map(Report::read).transpose()
}

fn tell(report: &Report, old: Option<&Report>, output: &BenchOutput) -> Result<(), Failure> {
    let to_stdout = output
        .json
        .as_deref()
        .is_some_and(|path| path.as_os_str() == "-");
    match &output.json {
        Some(_) if to_stdout => crate::output::print_json(report),
        Some(path) => report.write(path)?,
        None => {}
    }
    if !to_stdout {
        print(report.table());
    }
    let Some(old) = old else {
        return Ok(());
    };
    let comparison = Comparison::of(report, old);
    match to_stdout {
        true => say(comparison.table()),
        false => print(format!("\n{}", comparison.table())),
    }
    comparison.judge(&output.require)
}

/// Lets the CPU backend compute on so many threads.
fn threads(count: Option<usize>) -> Result<(), Failure> {
    let Some(count) = count else {
        return Ok(());
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count);
    pool.build_global()
        .map_err(|error| Failure::running(format!("{count} threads: {error}")))
}

/// The devices named; every real one that works, if none is.
fn picked(specs: &[Spec], quiet: bool) -> Result<Vec<Picked>, Failure> {
    let mut specs = specs.to_vec();
    if specs.is_empty() {
        specs.push(Spec::Cpu);
        for backend in [Backend::Cuda, Backend::Vulkan] {
            let found = survey(backend).devices;
            let real = |index: &usize| !found[*index].software && found[*index].problem.is_none();
            let indices = (0..found.len()).filter(real);
            specs.extend(indices.map(|index| Spec::Gpu(backend, Some(index))));
        }
    }
    let mut devices = Vec::new();
    for spec in specs {
        let device = devices::pick(spec)?;
        if let (Some(note), false) = (&device.note, quiet) {
            say(note);
        }
        devices.push(device);
    }
    Ok(devices)
}

/// `gate` as clap reads it.
pub(crate) fn gate(text: &str) -> Result<Gate, String> {
    text.parse()
}

pub(crate) use compare::Gate as BenchGate;
pub(crate) use train::{BenchModel, BenchObjective, BenchPrecision};

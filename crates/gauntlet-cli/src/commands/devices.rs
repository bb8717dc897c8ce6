use crate::args::Devices;
use crate::devices::{Backend, survey};
use crate::failure::Failure;
use crate::output;

/// Lists what this machine computes with.
pub(crate) fn devices(args: Devices) -> Result<(), Failure> {
    let surveys = [Backend::Cpu, Backend::Cuda, Backend::Vulkan].map(survey);
    if args.json.json {
        output::print_json(&surveys);
        return Ok(());
    }
    let mut table = output::table(&["device", "kind", "name", "state"]);
    for found in surveys.iter().flat_map(|survey| &survey.devices) {
        let state = match &found.problem {
            Some(problem) => problem.as_str(),
            None if found.software => "only when named",
            None => "ready",
        };
        table.add_row([&found.id, &found.kind, &found.name, state]);
    }
    output::print(table.trim_fmt());
    for survey in &surveys {
        if let Some(reason) = &survey.unavailable {
            output::print(format!("{}: {reason}", survey.backend.name()));
        }
    }
    Ok(())
}

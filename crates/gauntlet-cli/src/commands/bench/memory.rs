//! Peak memory of this process, where the system tells.

use crate::devices::Picked;

/// Sets the peak back to what is in use now. Where that is refused, the peak is that of all measurements so far.
pub(crate) fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most memory that was resident, in bytes: `VmHWM` of Linux. Of a GPU, what its allocator holds, which it gives back to nobody.
pub(crate) fn peak(on: &Picked) -> Option<u64> {
    match on.is_cpu() {
        true => resident(),
        false => Some(on.device.memory_pool_usage()?.bytes_reserved),
    }
}

fn resident() -> Option<u64> {
    of_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn of_status(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_the_kernel_s_words() {
        let status =
            "Name:\tgauntlet\nVmPeak:\t  900000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(of_status(status), Some(2 << 20));
        assert_eq!(of_status("Name:\tgauntlet\n"), None);
        if cfg!(target_os = "linux") {
            assert!(resident().unwrap() > 1 << 20);
        }
    }
}

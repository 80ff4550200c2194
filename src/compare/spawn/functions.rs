//! Counts the functions of the host's kernel that an arm's command reaches. All of them are watched at once, which slows the host down: so the run is
//! one of its own, with a limit of its own, and what watches them is gone with this process.

use std::path::Path;
use std::time::Duration;

use super::super::plan::Arm;
use super::super::reach::Counts;
use super::super::runner::RunnerError;
use super::Spawner;
use super::reach::{FAMILY, GONE, again, refused, sorted, tracefs};
use crate::compare::reach::cgroup_id;
use crate::sys::counts::Counter;

/// Longest time of that run.
const LIMIT: Duration = Duration::from_secs(180);

/// How far behind a function's address its first instruction may be that can be watched: an `endbr64` lies between.
const HEAD: u64 = 16;

/// The functions that can be watched: their addresses, and their names in the same order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Functions {
    addresses: Vec<u64>,
    names: Vec<String>,
}

impl Functions {
    /// Those of tracefs's `available_filter_functions_addrs` (trace/ftrace.rst): an address and a name in each line.
    fn listed(text: &str) -> Self {
        let mut all: Vec<(u64, &str)> = text
            .lines()
            .filter_map(|line| {
                let (address, rest) = line.split_once(' ')?;
                let name = rest.split(' ').next().filter(|name| is_watchable(name))?;
                Some((u64::from_str_radix(address, 16).ok()?, name))
            })
            .collect();
        all.sort_unstable();
        all.dedup_by_key(|(address, _)| *address);
        let names = all.iter().map(|(_, name)| (*name).to_owned()).collect();
        Self { addresses: all.into_iter().map(|(address, _)| address).collect(), names }
    }

    /// The name of the function at this address, or the address if there is none.
    fn name(&self, address: u64) -> String {
        let at = self.addresses.partition_point(|own| *own < address);
        let near = self.addresses.get(at).is_some_and(|own| own - address <= HEAD);
        self.names.get(at).filter(|_| near).cloned().unwrap_or_else(|| format!("{address:#x}"))
    }
}

/// A BPF program needs RCU, which sleeps in the functions of idling and is at work in its own; the others are places that only look like functions.
fn is_watchable(name: &str) -> bool {
    let apart = ["rcu_", "bpf_dispatcher_", "__ftrace_invalid_address__"];
    !apart.iter().any(|head| name.starts_with(head)) && !["arch_cpu_idle", "default_idle"].contains(&name)
}

/// The functions that the plan's command reaches in this arm, or why that is not known.
pub(super) fn functions(spawner: &Spawner, arm: &Arm) -> Result<Result<Counts, String>, RunnerError> {
    let (functions, counter) = match watched() {
        Ok(watched) => watched,
        Err(why) => return Ok(Err(why)),
    };
    let limit = spawner.plan.timeout.min(LIMIT);
    let cgroup = match again(spawner, arm, limit) {
        Ok(cgroup) => cgroup,
        Err(RunnerError::Interrupted) => return Err(RunnerError::Interrupted),
        Err(error) => return Ok(Err(format!("the command did not run while they were watched ({error})"))),
    };
    Ok(counted(&counter, cgroup, &functions))
}

fn counted(counter: &Counter, cgroup: Option<u64>, functions: &Functions) -> Result<Counts, String> {
    let cgroup = cgroup.ok_or(GONE)?;
    let found = counter.counts(cgroup).map_err(|e| format!("the kernel does not tell ({e})"))?;
    sorted(&found, |address| functions.name(address)).ok_or_else(|| "the kernel saw none in its cgroup".to_owned())
}

fn watched() -> Result<(Functions, Counter), String> {
    let (folder, _mount) = tracefs()?;
    let list = folder.join("available_filter_functions_addrs");
    let text = std::fs::read_to_string(&list).map_err(|e| {
        format!("{} cannot be read (a kernel from 6.5 on with CONFIG_DYNAMIC_FTRACE): {e}", list.display())
    })?;
    let functions = Functions::listed(&text);
    let family = cgroup_id(Path::new(FAMILY)).map_err(|e| format!("{FAMILY} cannot be read ({e})"))?;
    let counter = Counter::of_functions(family, &functions.addresses).map_err(|e| match e.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EINVAL) => format!("the kernel has no CONFIG_FPROBE ({e})"),
        _ => refused(&e),
    })?;
    Ok((functions, counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_named_by_their_addresses() {
        let list = "ffffffff81000410 vfs_read\nffffffff81000204 do_exit\nffffffffc0000000 kvm_arch_init [kvm]\n\
            ffffffff81000300 rcu_note\nffffffff81000310 default_idle\nffffffff81000320 __ftrace_invalid_address___8\nnone\n";
        let functions = Functions::listed(list);
        assert_eq!(functions.names, ["do_exit", "vfs_read", "kvm_arch_init"]);
        // With an `endbr64` ahead, and without one.
        let names = [0xffff_ffff_8100_0200, 0xffff_ffff_8100_0410, 0xffff_ffff_c000_0000].map(|at| functions.name(at));
        assert_eq!(names, ["do_exit", "vfs_read", "kvm_arch_init"]);
        assert_eq!(functions.name(0x1234), "0x1234");
        assert_eq!(functions.name(u64::MAX), "0xffffffffffffffff");
    }
}

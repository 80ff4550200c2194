//! The environment that a command sees, the same in both isolations.

use crate::{Identity, ProcessSpec};

/// `PATH` where neither image nor user sets one, as Docker has it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command's environment: the defaults that Docker gives (`PATH`, `HOSTNAME`, `TERM` with a terminal), then the spec's own in its
/// order, then `HOME` of the user. What the spec sets wins. An entry without a name or with a NUL byte is left out: no program could see it.
pub fn environment(process: &ProcessSpec, hostname: &str, identity: &Identity) -> Vec<String> {
    let is_set = |name: &str| process.env.iter().any(|e| e.split_once('=').is_some_and(|(n, _)| n == name));
    let mut environment = Vec::with_capacity(process.env.len().saturating_add(4));
    if !is_set("PATH") {
        environment.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !is_set("HOSTNAME") {
        environment.push(format!("HOSTNAME={hostname}"));
    }
    if process.terminal.is_some() && !is_set("TERM") {
        environment.push("TERM=xterm".to_owned());
    }
    let usable = |e: &&String| e.find('=').is_some_and(|at| at > 0) && !e.contains('\0');
    environment.extend(process.env.iter().filter(usable).cloned());
    if !is_set("HOME") {
        environment.push(format!("HOME={}", identity.home));
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TerminalSize;

    #[test]
    fn defaults_come_first_and_lose() {
        let identity = Identity { home: "/root".into(), ..Identity::default() };
        let mut process = ProcessSpec { env: vec!["A=1".into(), "HOME=/x".into()], ..ProcessSpec::default() };
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(environment(&process, "h", &identity), [&path, "HOSTNAME=h", "A=1", "HOME=/x"]);
        process.env = vec!["PATH=/p".into(), "=x".into(), "no".into(), "N=a\0b".into()];
        process.terminal = Some(TerminalSize::default());
        assert_eq!(environment(&process, "h", &identity), ["HOSTNAME=h", "TERM=xterm", "PATH=/p", "HOME=/root"]);
    }
}

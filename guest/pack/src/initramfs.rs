//! The guest's initial RAM file system: the agent as `/init`, and the folders it mounts on.

use std::io;

use crate::cpio::Writer;

/// Mount points of the agent (`guest/agent`: boot.rs, cgroup.rs, root.rs).
const FOLDERS: [&str; 7] = ["dev", "proc", "sys", "cgroup", "image", "memory", "root"];

/// The archive with this agent. `dev/console` is what the kernel opens as the agent's standard streams, `dev/null` is what Rust's runtime
/// opens if the kernel had no console.
pub(crate) fn initramfs(agent: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = Writer::default();
    for folder in FOLDERS {
        writer.folder(folder, 0o755)?;
    }
    writer.device("dev/console", 0o600, (5, 1))?;
    writer.device("dev/null", 0o666, (1, 3))?;
    writer.file("init", 0o755, agent)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        assert_eq!(initramfs(b"agent").unwrap(), initramfs(b"agent").unwrap());
        assert_ne!(initramfs(b"agent").unwrap(), initramfs(b"other").unwrap());
    }
}

//! Programs of e2fsprogs, which every Debian has.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where they are looked up: they are the system's, whatever the caller's PATH says.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// All features by name, so that a volume does not depend on the host's mke2fs.conf: what Linux 5.10 and any later kernel writes.
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Nothing is left to be initialised by a kernel later. The file is new and sparse: what is not written is zero.
const EXTENDED: &str = "assume_storage_prezeroed=1,lazy_itable_init=0,nodiscard,root_owner=0:0";

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It does not run.
    #[error("Cannot run {0}: volumes need it (Debian's package e2fsprogs)")]
    Run(&'static str, #[source] io::Error),
    /// It failed.
    #[error("{0} failed: {1}")]
    Failed(&'static str, String),
}

/// Makes an ext4 that fills this file.
pub(super) fn make(disk: &Path) -> Result<(), ToolError> {
    let words = ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", FEATURES, "-E", EXTENDED];
    run("mke2fs", &words, disk, 0)
}

/// Replays the journal of the ext4 in this file, and changes nothing else.
pub(super) fn replay(disk: &Path) -> Result<(), ToolError> {
    // 1: the file system was changed, which is what it is for (e2fsck(8), "EXIT CODE").
    run("e2fsck", &["-p", "-E", "journal_only"], disk, 1)
}

fn run(program: &'static str, words: &[&str], disk: &Path, most: i32) -> Result<(), ToolError> {
    let path = FOLDERS.iter().map(|f| Path::new(f).join(program)).find(|p| p.exists());
    let path = path.ok_or_else(|| ToolError::Run(program, io::ErrorKind::NotFound.into()))?;
    let mut command = Command::new(path);
    command.args(words).arg(disk).env_clear().stdin(Stdio::null());
    let output = command.output().map_err(|e| ToolError::Run(program, e))?;
    if output.status.code().is_some_and(|code| (0..=most).contains(&code)) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(ToolError::Failed(program, if text.is_empty() { output.status.to_string() } else { text }))
}

//! A sandbox's processes from the texts of `/proc` (proc(5)). The names in them are the workload's own: hostile, cut and cleaned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::MOST_PROCESSES;

/// Number of a process.
pub type Pid = u32;

/// Clock ticks of a second in `/proc/PID/stat` (`USER_HZ`, the same on every x86-64 Linux), in milliseconds each.
const TICK_MS: u64 = 10;

/// Longest command that is told, in bytes.
const LONGEST_COMMAND: usize = 256;

/// One process of a sandbox, numbered as it is inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Its number.
    pub pid: Pid,
    /// Its parent's number; 0 if the parent is outside.
    pub parent: Pid,
    /// Its effective user's number.
    pub user: u32,
    /// Processor time that it has used, in milliseconds.
    pub cpu_ms: u64,
    /// How long ago it was started, in milliseconds.
    pub age_ms: u64,
    /// Number of its terminal below `/dev/pts`, if it has one.
    pub terminal: Option<u32>,
    /// Program and arguments, or the program's name in brackets where there are none.
    pub command: String,
}

/// The processes with these numbers, as `read(pid, file)` shows them in `/proc` and as their own namespace numbers them, at most
/// [`MOST_PROCESSES`] in the order of their numbers. Those that have ended meanwhile or have no number of their own inside are left out.
/// `uptime_ms` is the time since boot.
pub fn processes(pids: &[Pid], uptime_ms: u64, read: impl Fn(Pid, &str) -> Option<Vec<u8>>) -> Vec<ProcessEntry> {
    let text = |pid, file| read(pid, file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut inside = BTreeMap::new();
    let mut found = Vec::new();
    for pid in pids {
        let (Some(status), Some(stat)) = (text(*pid, "status"), text(*pid, "stat")) else { continue };
        let Some((number, parent, mut entry)) = process_entry(&status, &stat, uptime_ms) else { continue };
        inside.insert(number, entry.pid);
        entry.command = command_line(&read(*pid, "cmdline").unwrap_or_default(), &stat);
        found.push((parent, entry));
    }
    for (parent, entry) in &mut found {
        entry.parent = inside.get(parent).copied().unwrap_or(0);
    }
    let mut entries: Vec<ProcessEntry> = found.into_iter().map(|(_, entry)| entry).collect();
    entries.sort_by_key(|entry| entry.pid);
    entries.truncate(MOST_PROCESSES);
    entries
}

/// The process's number and its parent's as the reader sees them, and what is known of it without its command. `None` for texts that are not of a
/// process in a namespace of its own.
pub fn process_entry(status: &str, stat: &str, uptime_ms: u64) -> Option<(Pid, Pid, ProcessEntry)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let numbers =
        |name: &str| -> Option<Vec<u32>> { field(name)?.split_whitespace().map(|n| n.parse().ok()).collect() };
    let names = numbers("NSpid")?;
    let ([outside, .., inside], parent, user) = (names.as_slice(), numbers("PPid")?, numbers("Uid")?) else {
        return None;
    };
    // Behind the name, which is in parentheses and may hold any byte: state is the first field, and the third of the man page.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |nth: usize| fields.get(nth.checked_sub(3)?)?.parse::<i64>().ok()?.try_into().ok();
    let (user_ticks, system_ticks, started): (u64, u64, u64) = (number(14)?, number(15)?, number(22)?);
    let entry = ProcessEntry {
        pid: *inside,
        parent: 0,
        user: *user.get(1)?,
        cpu_ms: user_ticks.saturating_add(system_ticks).saturating_mul(TICK_MS),
        age_ms: uptime_ms.saturating_sub(started.saturating_mul(TICK_MS)),
        terminal: fields.get(4).and_then(|tty| pts(tty.parse().ok()?)),
        command: String::new(),
    };
    Some((*outside, *parent.first()?, entry))
}

/// Number of the pseudo terminal behind a `tty_nr`: major 136 to 143, each with 2^20 minors (`UNIX98_PTY_SLAVE_MAJOR`).
fn pts(tty: u32) -> Option<u32> {
    let (major, minor) = ((tty >> 8) & 0xfff, (tty & 0xff) | ((tty >> 12) & 0xf_ff00));
    (136..144).contains(&major).then_some(minor)
}

/// A command as one line: the arguments of `cmdline` with blanks between them, or the name of `stat` in brackets.
pub fn command_line(cmdline: &[u8], stat: &str) -> String {
    let end = cmdline.iter().rposition(|b| *b != 0).map_or(0, |last| last.saturating_add(1));
    let words = cmdline.get(..end.min(LONGEST_COMMAND)).unwrap_or_default();
    let text = if words.is_empty() {
        let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map_or("?", |(name, _)| name);
        format!("[{name}]")
    } else {
        String::from_utf8_lossy(words).replace('\0', " ")
    };
    let shown = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut cut = String::new();
    for c in shown {
        if cut.len().saturating_add(c.len_utf8()) > LONGEST_COMMAND {
            break;
        }
        cut.push(c);
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\nPid:\t4711\nPPid:\t4700\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t4711\t7\n";
    const STAT: &str = "4711 (a) b) (c) S 4700 4711 4711 34817 4711 4194304 1 2 3 4 150 50 0 0 20 0 1 0 1000 0 0";

    #[test]
    fn one_process_is_read() {
        let (number, parent, entry) = process_entry(STATUS, STAT, 12_000).unwrap();
        assert_eq!((number, parent), (4711, 4700));
        let expected = ProcessEntry {
            pid: 7,
            parent: 0,
            user: 1001,
            cpu_ms: 2000,
            age_ms: 2000,
            terminal: Some(1),
            command: String::new(),
        };
        assert_eq!(entry, expected);
        assert_eq!(command_line(b"", STAT), "[a) b) (c]");
        assert!(process_entry(&STATUS.replace("\t7", ""), STAT, 0).is_none(), "not in a namespace of its own");
        assert!(process_entry("", STAT, 0).is_none());
        assert!(process_entry(STATUS, "4711 (sh", 0).is_none());
        assert!(process_entry(STATUS, "4711 (sh) S 1 2", 0).is_none());
    }

    #[test]
    fn commands_are_cut_and_cleaned() {
        assert_eq!(command_line(b"sh\0-c\0a\x1b[2J\nb\0\0", STAT), "sh -c a?[2J?b");
        assert_eq!(command_line(&[b'x'; 4000], STAT).len(), LONGEST_COMMAND);
        assert!(command_line(&[0xff; 4000], STAT).len() <= LONGEST_COMMAND);
    }

    #[test]
    fn a_list_is_numbered_from_inside_and_has_an_end() {
        let read = |pid: Pid, file: &str| {
            let text = match file {
                "status" => format!("PPid:\t{}\nUid:\t0 0 0 0\nNSpid:\t{pid} {}\n", pid - 1, pid - 99),
                "stat" => format!("{pid} (p) S 1 1 1 0 1 0 1 2 3 4 1 1 0 0 20 0 1 0 1 0 0"),
                _ => "p".repeat(1000),
            };
            (pid != 102).then(|| text.into_bytes())
        };
        let all: Vec<Pid> = (100..3000).rev().collect();
        let listed = processes(&all, 0, read);
        assert_eq!(listed.len(), MOST_PROCESSES);
        let shown: Vec<(Pid, Pid)> = listed.iter().take(4).map(|p| (p.pid, p.parent)).collect();
        assert_eq!(shown, [(1, 0), (2, 1), (4, 0), (5, 4)]);
        let answer = crate::Answer::Processes(listed);
        let frame = crate::encode(&crate::ToHost::Answer { number: u32::MAX, answer: Ok(answer) });
        assert!(frame.is_ok(), "the longest list fits a message: {frame:?}");
    }
}

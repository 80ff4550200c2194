//! Answers about the command: its processes and what they use.

use duplex_wire::{Answer, Counters, Pid, Question, ToHost, processes};

use crate::cgroup::{self, GROUP};
use crate::host::Speaker;
use crate::stdio::thread;
use crate::trouble::{Doing, Trouble};

/// Most processes that are looked at; a list of more is cut in any case.
const MOST_PIDS: usize = 4096;

/// Answers from a thread of its own: a machine full of processes takes a while to look at.
pub(crate) fn answer(number: u32, question: Question, host: &Speaker) -> Result<(), Trouble> {
    let host = host.clone();
    let work = move || {
        let answer = look(question).map_err(|trouble| trouble.chain());
        // A host that cannot be told is gone, and the machine with it.
        let _ = host.tell(&ToHost::Answer { number, answer });
    };
    thread("answer", work).map(drop)
}

fn look(question: Question) -> Result<Answer, Trouble> {
    let text = |path: &str| std::fs::read_to_string(path).doing(|| format!("read {path}"));
    match question {
        Question::Processes => {
            let pids = text(&format!("{GROUP}/cgroup.procs"))?;
            let pids: Vec<Pid> = pids.lines().filter_map(|pid| pid.parse().ok()).take(MOST_PIDS).collect();
            let uptime = uptime_ms(&text("/proc/uptime")?);
            Ok(Answer::Processes(processes(&pids, uptime, |pid, file| {
                std::fs::read(format!("/proc/{pid}/{file}")).ok()
            })))
        }
        Question::Counters => {
            let counters = Counters::of_cgroup(|name| std::fs::read_to_string(format!("{GROUP}/{name}")).ok());
            Ok(Answer::Counters(counters.with_network(&text("/proc/net/dev")?)))
        }
        Question::Hold | Question::Release => Err(Trouble::new("answer", "the command is held by another thread")),
        Question::Limit { memory_bytes, pids } => {
            let counters = Counters::of_cgroup(|name| std::fs::read_to_string(format!("{GROUP}/{name}")).ok());
            let used = counters.memory_bytes.unwrap_or(0);
            if let Some(asked) = memory_bytes.filter(|asked| *asked < used) {
                let why = format!("it uses {used} bytes, so {asked} would end it: let it use less first");
                return Err(Trouble::new("set a limit of memory", why));
            }
            cgroup::change(memory_bytes, pids).map(|()| Answer::Done)
        }
    }
}

/// The first number of `/proc/uptime`, seconds with two digits behind the point (proc_uptime(5)).
fn uptime_ms(text: &str) -> u64 {
    let first = text.split_whitespace().next().unwrap_or_default();
    let (seconds, hundredths) = first.split_once('.').unwrap_or((first, "0"));
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    number(seconds).saturating_mul(1000).saturating_add(number(hundredths).saturating_mul(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_are_milliseconds() {
        assert_eq!(uptime_ms("350735.47 234388.90\n"), 350_735_470);
        assert_eq!(uptime_ms(""), 0);
    }
}

//! Runs cases two at a time and counts what passed, failed and was skipped.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One test: it passes by returning `Ok`, fails by a panic and is skipped by an `Err`.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// `module::what_must_hold`.
    pub(crate) name: &'static str,
    /// What it cannot run without.
    pub(crate) needs: &'static [Need],
    /// The test.
    pub(crate) run: fn() -> Verdict,
}

impl Case {
    fn has(&self, need: &Need) -> bool {
        self.needs.contains(need)
    }
}

/// `Err` is a skip for a reason that only the running case can find out.
pub(crate) type Verdict = Result<(), Skip>;

/// The cases `module::name` of these functions, each with a place of its own.
macro_rules! cases_with {
    ($module:literal, $place:expr, [$($name:ident),* $(,)?]) => {
        pub(crate) const CASES: &[Case] = &[
            $(Case { name: concat!($module, "::", stringify!($name)), needs: NEEDS, run: || { $name(&$place); Verdict::Ok(()) } }),*
        ];
    };
}
pub(crate) use cases_with;

/// Why a case did not run.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

/// Something that a case cannot run without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "a vocabulary: a need may have no case for a while")]
pub(crate) enum Need {
    /// A host that runs sandboxes: `DUPLEX_TEST_HOST=1`, set in the lab.
    Host,
    /// Not in the lab: the case starts the lab itself or only uses this machine's tools, and one run of it is enough.
    Outside,
    /// `/dev/kvm` that opens for reading and writing.
    Kvm,
    /// cgroup v2 at `/sys/fs/cgroup`.
    CgroupV2,
    /// Nobody else: the case counts what is on the host. It runs after the others, by itself.
    Alone,
    /// The tests' own store below `target/`, with its volumes: labs share the checkout, so one of them has all these cases.
    Store,
    /// User id 0.
    Root,
    /// A program in `PATH` (or in the `sbin` folders).
    Program(&'static str),
    /// A file or folder.
    File(&'static str),
}

/// Longest time a case may take before the whole run is given up, in seconds, unless `DUPLEX_TEST_LIMIT` says another.
const LIMIT: u64 = 900;

/// Lines of a failure's words that are shown from its beginning and from its end.
const HEAD_LINES: usize = 30;
const TAIL_LINES: usize = 30;

thread_local! {
    static WORDS: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Options {
    filters: Vec<String>,
    list: bool,
    exact: bool,
    threads: usize,
}

enum End {
    Passed,
    Failed(String),
    Skipped(String),
}

#[derive(Default)]
struct Tally {
    passed: usize,
    skipped: usize,
    failed: Vec<(&'static str, String)>,
}

pub(crate) fn main(modules: &[&[Case]]) -> ExitCode {
    let options = options(std::env::args().skip(1));
    let mut cases: Vec<Case> = modules.iter().flat_map(|m| m.iter().copied()).filter(|c| options.wants(c)).collect();
    cases.sort_by_key(|c| c.name);
    if let Some(part) = part() {
        cases = part.of(&cases);
    }
    if options.list {
        for case in &cases {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    std::panic::set_hook(Box::new(|info| {
        let text = format!("{info}");
        if WORDS.with(|w| w.borrow().is_empty()) {
            WORDS.with(|w| *w.borrow_mut() = text);
        }
    }));
    println!("\nrunning {} cases", cases.len());
    let (alone, together): (Vec<Case>, Vec<Case>) = cases.iter().partition(|case| case.has(&Need::Alone));
    let tally = Mutex::new(Tally::default());
    run_all(&together, options.threads, &tally);
    run_all(&alone, 1, &tally);
    let tally = tally.into_inner().unwrap();
    for (name, words) in &tally.failed {
        println!("\n---- {name}\n{}", ends_of(words));
    }
    println!();
    for (name, _) in &tally.failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed.len(), tally.skipped);
    if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One part of the cases.
pub(crate) struct Part {
    number: usize,
    of: usize,
}

impl Part {
    /// What `text` names, such as `2/3`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (number, of) = text.split_once('/')?;
        let part = Self { number: number.parse().ok()?, of: of.parse().ok()? };
        (1..=part.of).contains(&part.number).then_some(part)
    }

    /// Its share of these cases: the first part's are all with the store. The others go where least is, those that run by themselves first, as
    /// they are the long ones.
    pub(crate) fn of(&self, cases: &[Case]) -> Vec<Case> {
        let (stored, others): (Vec<Case>, Vec<Case>) = cases.iter().partition(|case| case.has(&Need::Store));
        let (alone, together): (Vec<Case>, Vec<Case>) = others.iter().partition(|case| case.has(&Need::Alone));
        let mut loads = vec![0; self.of];
        // Whole applications run in them, each as long as a dozen others.
        loads[0] = 12 * stored.len();
        let mut mine = if self.number == 1 { stored } else { Vec::new() };
        for (case, weight) in alone.into_iter().map(|c| (c, 3)).chain(together.into_iter().map(|c| (c, 1))) {
            let least = (0..self.of).min_by_key(|part| loads[*part]).unwrap_or(0);
            loads[least] += weight;
            if least + 1 == self.number {
                mine.push(case);
            }
        }
        mine
    }
}

/// The part that `DUPLEX_TEST_PART` names; all cases if it is not set.
fn part() -> Option<Part> {
    let text = std::env::var("DUPLEX_TEST_PART").ok()?;
    Some(Part::parse(&text).unwrap_or_else(|| panic!("DUPLEX_TEST_PART={text} is no part such as 1/2")))
}

/// A guest's whole log would push every other failure off the screen: first and last lines are kept.
fn ends_of(words: &str) -> String {
    let lines: Vec<&str> = words.lines().collect();
    let dropped = lines.len().saturating_sub(HEAD_LINES + TAIL_LINES);
    if dropped == 0 {
        return words.to_owned();
    }
    let tail = lines.len() - TAIL_LINES;
    format!("{}\n[{dropped} lines left out]\n{}", lines[..HEAD_LINES].join("\n"), lines[tail..].join("\n"))
}

fn run_all(cases: &[Case], threads: usize, tally: &Mutex<Tally>) {
    let next = AtomicUsize::new(0);
    let running: Mutex<Vec<(&'static str, Instant)>> = Mutex::default();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(cases.len()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    running.lock().unwrap().push((case.name, began));
                    let end = run_one(case);
                    running.lock().unwrap().retain(|(name, _)| *name != case.name);
                    note(tally, case.name, end, began.elapsed());
                    done.fetch_add(1, Ordering::Release);
                }
            });
        }
        scope.spawn(|| {
            while done.load(Ordering::Acquire) < cases.len() {
                give_up_on_the_stuck(&running);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    });
}

/// A thread cannot be ended from outside: a case over its limit ends the run.
#[allow(clippy::exit, reason = "the one way out while a case's thread is stuck")]
fn give_up_on_the_stuck(running: &Mutex<Vec<(&'static str, Instant)>>) {
    let limit = std::env::var("DUPLEX_TEST_LIMIT").ok().and_then(|text| text.parse().ok()).unwrap_or(LIMIT);
    let over = |began: Instant| began.elapsed() > Duration::from_secs(limit);
    let stuck = running.lock().unwrap().iter().find(|(_, began)| over(*began)).copied();
    if let Some((name, _)) = stuck {
        println!("case {name} ... FAILED: still running after {limit} s; the run is given up\nprocesses now:");
        processes().iter().for_each(|line| println!("  {line}"));
        std::process::exit(1);
    }
}

/// The programs that run here, a line for each: what it is, whose child, what it waits for and which signals it has pending and blocks.
pub(crate) fn processes() -> Vec<String> {
    let folders = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let line = |folder: std::path::PathBuf| {
        let text = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let words = text("cmdline").replace('\0', " ");
        let status = text("status");
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map_or("?", str::trim);
        // A thread of the kernel's has no words.
        (!words.is_empty()).then(|| {
            let signals = ["ShdPnd:", "SigBlk:", "SigCgt:"].map(|name| field(name).trim_start_matches('0')).join(" ");
            let (pid, parent, state) = (field("Pid:"), field("PPid:"), field("State:"));
            let words: String = words.chars().take(160).collect();
            format!("{pid} < {parent}: {state}, {}, signals [{signals}]: {words}", text("wchan"))
        })
    };
    folders.filter_map(line).collect()
}

fn note(tally: &Mutex<Tally>, name: &'static str, end: End, took: Duration) {
    let mut tally = tally.lock().unwrap();
    let seconds = took.as_secs_f64();
    match end {
        End::Passed => {
            println!("case {name} ... ok ({seconds:.1} s)");
            tally.passed += 1;
        }
        End::Failed(words) => {
            println!("case {name} ... FAILED ({seconds:.1} s)");
            tally.failed.push((name, words));
        }
        End::Skipped(reason) => {
            println!("case {name} ... skipped: {reason}");
            tally.skipped += 1;
        }
    }
}

fn run_one(case: &Case) -> End {
    if let Some(reason) = case.needs.iter().find_map(|n| missing(*n)) {
        return skipped(case, reason);
    }
    WORDS.with(|w| w.borrow_mut().clear());
    match catch_unwind(AssertUnwindSafe(case.run)) {
        Ok(Ok(())) => End::Passed,
        Ok(Err(Skip(reason))) => skipped(case, reason),
        Err(payload) => {
            let words = WORDS.with(|w| std::mem::take(&mut *w.borrow_mut()));
            End::Failed(if words.is_empty() { payload_text(payload.as_ref()) } else { words })
        }
    }
}

/// With `DUPLEX_TEST_STRICT=1`, as in CI, a case may be skipped only where its other run, inside or outside of the lab, is the one that counts.
fn skipped(case: &Case, reason: String) -> End {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| v == "1");
    let has = |wanted: fn(&Need) -> bool| case.needs.iter().any(wanted);
    let other_run =
        if set("DUPLEX_TEST_HOST") { has(|n| matches!(n, Need::Outside)) } else { has(|n| matches!(n, Need::Host)) };
    if set("DUPLEX_TEST_STRICT") && !other_run {
        return End::Failed(format!("skipped where nothing may be: {reason}"));
    }
    End::Skipped(reason)
}

fn payload_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

/// Why this need is not met, if it is not.
pub(crate) fn missing(need: Need) -> Option<String> {
    let capable = std::env::var_os("DUPLEX_TEST_HOST").is_some_and(|v| v == "1");
    match need {
        Need::Host if !capable => {
            Some("needs a host that runs sandboxes (DUPLEX_TEST_HOST=1, as in the lab)".to_owned())
        }
        Need::Outside if capable => Some("runs outside the lab only (DUPLEX_TEST_HOST is set)".to_owned()),
        Need::Kvm => {
            let opened = std::fs::File::options().read(true).write(true).open("/dev/kvm");
            opened.err().map(|e| format!("needs /dev/kvm: {e}"))
        }
        Need::CgroupV2 if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => {
            Some("needs cgroup v2 at /sys/fs/cgroup".to_owned())
        }
        Need::Root if !rustix::process::geteuid().is_root() => Some("needs root".to_owned()),
        Need::Program(name) if !in_path(name) => Some(format!("needs the program {name}")),
        Need::File(path) if !Path::new(path).exists() => Some(format!("needs {path}")),
        _ => None,
    }
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = ["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()];
    std::env::split_paths(&path).chain(beside).any(|dir| dir.join(name).is_file())
}

/// The options of libtest that people and cargo type; others are accepted and mean nothing.
fn options(args: impl Iterator<Item = String>) -> Options {
    let mut options = Options { filters: Vec::new(), list: false, exact: false, threads: 2 };
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => options.list = true,
            "--exact" => options.exact = true,
            "--test-threads" => options.threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(2),
            "--format" | "--color" | "--skip" | "-Z" => drop(args.next()),
            other => match other.strip_prefix("--test-threads=") {
                Some(number) => options.threads = number.parse().unwrap_or(2),
                None if other.starts_with('-') => {}
                None => options.filters.push(arg),
            },
        }
    }
    options.threads = options.threads.max(1);
    options
}

impl Options {
    fn wants(&self, case: &Case) -> bool {
        let matches = |f: &String| if self.exact { case.name == f } else { case.name.contains(f.as_str()) };
        self.filters.is_empty() || self.filters.iter().any(matches)
    }
}

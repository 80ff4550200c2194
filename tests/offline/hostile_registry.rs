//! `duplex pull` from a registry that misbehaves by script: it ends in time, says what was wrong, leaves nothing, and pulls a good image afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::scripted_registry::{Act, Server, Shelf, sha256};
use crate::{registry_contents, registry_wire};

/// Scripts at once: most of them wait.
const WORKERS: usize = 24;
/// A pull that is not at its end by then hangs: all its limits together are far below.
const GUARD: Duration = Duration::from_secs(100);
/// Most private memory of a pull, in KiB. What any script sends without end is larger.
const MEMORY: u64 = 96 << 10;
/// Longest text of an error, in bytes.
const WORDS: usize = 6000;

/// One way to misbehave, and what comes of it.
pub(crate) struct Script {
    name: String,
    shelf: Shelf,
    act: Act,
    /// Words of the error; `None` if the image is taken all the same.
    words: Option<Vec<&'static str>>,
    /// Further options of the pull.
    options: Vec<&'static str>,
}

/// A script whose pull fails with these words.
pub(crate) fn refused(name: &str, words: &[&'static str], act: Act) -> Script {
    Script { words: Some(words.to_vec()), ..taken(name, act) }
}

/// A script that does no harm.
pub(crate) fn taken(name: &str, act: Act) -> Script {
    Script { name: name.to_owned(), shelf: Shelf::good(), act, words: None, options: Vec::new() }
}

impl Script {
    /// A registry that serves this as it should.
    pub(crate) fn serving(name: &str, words: &[&'static str], shelf: Shelf) -> Self {
        let script = taken(name, Arc::new(|_| None));
        Self { shelf, words: (!words.is_empty()).then(|| words.to_vec()), ..script }
    }

    pub(crate) fn with(self, options: &[&'static str]) -> Self {
        Self { options: options.to_vec(), ..self }
    }
}

fn all() -> Vec<Script> {
    [
        registry_wire::connections(),
        registry_wire::framing(),
        registry_wire::redirects(),
        registry_wire::statuses(),
        registry_wire::resumes(),
        registry_wire::challenges(),
        registry_wire::tokens(),
        registry_wire::credentials(),
        registry_contents::documents(),
        registry_contents::descriptors(),
        registry_contents::indexes(),
        registry_contents::configs(),
        registry_contents::layers(),
        registry_contents::limits(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// `duplex pull` with limited memory, waited for.
fn pull(root: &Path, port: u16, options: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -d {MEMORY} && exec \"$@\""), "sh", env!("CARGO_BIN_EXE_duplex")]);
    command.arg("--root").arg(root).args(["pull", "-q"]).args(options);
    command.arg(format!("127.0.0.1:{port}/x:t"));
    for variable in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(variable);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    // What it says is far below what a pipe holds.
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > GUARD {
            child.kill().unwrap();
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// Runs one script. What is wrong with how the pull ended, if anything.
fn run(script: &Script) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = Server::start("127.0.0.2", 0, script.shelf.clone(), Arc::new(|_| None));
    let server = Server::start("127.0.0.1", elsewhere.port, script.shelf.clone(), script.act.clone());
    // Only who is to be found idle has to be so soon: others may be slow because this machine is.
    let stalls = script.words.iter().flatten().any(|word| *word == "stalled");
    let mut options = vec!["--stall", if stalls { "1" } else { "60" }];
    options.extend(&script.options);
    let output = pull(folder.path(), server.port, &options);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let must = |true_: bool, what: &str| if true_ { Ok(()) } else { Err(format!("{what}: {} {said}", output.status)) };
    match &script.words {
        None => must(output.status.code() == Some(0) && said.is_empty(), "is to be taken")?,
        Some(words) => {
            must(output.status.code() == Some(1), "is to be refused")?;
            words.iter().try_for_each(|word| must(said.contains(word), &format!("is to say '{word}'")))?;
            must(said.contains(&format!("127.0.0.1:{}/x:t", server.port)), "is to name what was pulled")?;
            must(said.len() < WORDS && said.chars().all(|c| c == '\n' || !c.is_control()), "is to be fit to be shown")?;
            for part in ["tmp", "layers", "images", "references", "locks"] {
                let left = fs::read_dir(folder.path().join(part)).unwrap().count();
                must(left == 0, &format!("{left} left in {part}"))?;
            }
        }
    }
    let leaks = |ask: &crate::scripted_registry::Ask| {
        ["authorization", "cookie", "referer"].iter().any(|header| ask.headers.contains_key(*header))
    };
    must(!elsewhere.asked().iter().any(leaks), "another host was told what is not for it")?;
    let good = Server::start("127.0.0.1", 0, Shelf::good(), Arc::new(|_| None));
    let after = pull(folder.path(), good.port, &[]);
    let digest = format!("{}\n", sha256(Shelf::good().document()));
    let told = String::from_utf8_lossy(&after.stderr).into_owned();
    must(after.stdout == digest.as_bytes(), &format!("a good image is not pulled afterwards ({told})"))
}

#[test]
fn whatever_a_registry_does_the_pull_ends_in_words_and_leaves_nothing() {
    let scripts = all();
    let names: BTreeSet<&str> = scripts.iter().map(|s| s.name.as_str()).collect();
    assert!(names.len() == scripts.len() && names.len() >= 60, "{} scripts, {} names", scripts.len(), names.len());
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(what) = run(script) {
                        wrong.lock().unwrap().push(format!("{}: {what}", script.name));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} scripts:\n{}", wrong.len(), scripts.len(), wrong.join("\n"));
}

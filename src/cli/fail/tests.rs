use super::*;
use crate::cli::meaning::MeaningError;
use crate::compare::{ArmError, CompareError, Control, Disagreement, RunnerError, Stream};
use crate::spec::{Digest, MemorySize, NetworkMode};

#[derive(Debug, thiserror::Error)]
enum Sample {
    #[error("Cannot create microvm 0123456789ab")]
    Top(#[source] Box<Sample>),
    #[error(transparent)]
    Same(Box<Sample>),
    #[error("Cannot open /dev/kvm")]
    Open(#[source] io::Error),
    #[error("Disk full: free 12 MiB more")]
    Full(#[source] io::Error),
}

fn system(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

#[test]
fn an_error_is_printed_once_with_its_causes_and_a_mend() {
    let error = Sample::Top(Box::new(Sample::Same(Box::new(Sample::Open(system(13))))));
    assert_eq!(
        Failure::new(Code::Duplex, error).render(),
        "Error: Cannot create microvm 0123456789ab\n  1: Cannot open /dev/kvm\n  2: Permission denied (os error 13)\n\
         Hint: run it as root, or see 'duplex doctor' for what this user may do\n"
    );
}

#[test]
fn an_error_that_names_its_mend_gets_no_second_one() {
    assert_eq!(Failure::new(Code::Failed, Sample::Full(system(28))).mend, None);
    let other = Failure::new(Code::Failed, Sample::Open(system(2)));
    assert_eq!(other.mend, None);
    assert!(other.mended_by("do this").render().ends_with("Hint: do this\n"));
}

#[test]
fn exit_codes_are_dockers() {
    assert_eq!([Code::Done, Code::Failed, Code::Refused, Code::Duplex].map(|c| c as u8), [0, 1, 2, 125]);
}

fn text() -> String {
    "thing".to_owned()
}

fn of_meaning() -> Vec<MeaningError> {
    vec![
        MeaningError::NoCommand(text()),
        MeaningError::Variable(text()),
        MeaningError::EnvFile { file: text(), line: 3, text: text() },
        MeaningError::Workdir(text()),
        MeaningError::Capability(text()),
        MeaningError::Name(text()),
        MeaningError::Hostname(text()),
        MeaningError::Memory(MemorySize(1 << 20)),
        MeaningError::SwapAlone,
        MeaningError::Swap { total: MemorySize(1 << 20), memory: MemorySize(2 << 20) },
        MeaningError::Vcpus(9),
        MeaningError::Pids(-7),
        MeaningError::MicroVmOnly("--thing"),
        MeaningError::NetworkRate(NetworkMode::None),
        MeaningError::NotATerminal,
    ]
}

fn of_arms() -> Vec<ArmError> {
    vec![
        ArmError::Isolation(text()),
        ArmError::Setting { arm: text(), setting: text() },
        ArmError::Kernel(text()),
        ArmError::Name(text()),
        ArmError::Twice(text()),
        ArmError::TooFew(1),
    ]
}

fn of_runners() -> Vec<RunnerError> {
    vec![
        RunnerError::Spawn { program: text().into(), source: system(2) },
        RunnerError::Watch { operation: "read the output", source: system(5) },
        RunnerError::Timeout { seconds: 3 },
        RunnerError::Lingering { exit_code: 0 },
        RunnerError::Failed { exit_code: 125, stderr: text() },
        RunnerError::NoEcho { seconds: 3, said: text() },
        RunnerError::Scratch(system(28)),
        RunnerError::Interrupted,
    ]
}

fn of_comparisons() -> Vec<CompareError> {
    let (first_run, other_run) = (text(), "other".to_owned());
    let digest = Digest::from_sha256([1; 32]);
    let control = Control { name: text(), expected: text(), found: text(), passed: false };
    let mut all: Vec<CompareError> = of_runners()
        .into_iter()
        .map(|source| CompareError::Arm { arm: text(), what: "round 1".to_owned(), source })
        .collect();
    let ways = [
        Disagreement::ExitCode { first_run: first_run.clone(), first: 0, other_run: other_run.clone(), other: 1 },
        Disagreement::Output {
            stream: Stream::Stdout,
            at: 1,
            line: 1,
            first_run: first_run.clone(),
            first: text(),
            other_run: other_run.clone(),
            other: text(),
        },
        Disagreement::Tail { stream: Stream::Stderr, first_run, first: 1, other_run, other: 2 },
    ];
    all.extend(ways.map(CompareError::Differ));
    all.push(CompareError::Image { arm: text(), found: digest.clone(), expected: digest });
    all.push(CompareError::Control { arm: text(), control });
    all
}

#[test]
fn every_error_of_the_command_line_and_of_comparisons_reads_well() {
    let mut all: Vec<Box<dyn Error + Send + Sync>> = Vec::new();
    all.extend(of_meaning().into_iter().map(Into::into));
    all.extend(of_arms().into_iter().map(Into::into));
    all.extend(of_comparisons().into_iter().map(Into::into));
    for error in all {
        let shown = Failure::new(Code::Failed, error).render();
        let lines: Vec<&str> =
            shown.lines().map(|l| l.trim_start_matches(|c: char| c.is_numeric() || " :".contains(c))).collect();
        for (at, line) in lines.iter().enumerate() {
            let words = line.strip_prefix("Error: ").unwrap_or(line);
            assert!(
                words.starts_with(|c: char| c.is_uppercase() || c == '\''),
                "does not begin with a capital: {shown}"
            );
            assert!(!words.ends_with(['.', ' ', ':']), "ends like a fragment: {shown}");
            assert!(!words.contains('{') && !words.contains("Some("), "shows a program's view: {shown}");
            for earlier in lines.get(..at).unwrap_or_default() {
                assert!(!earlier.contains(words), "is told twice: {shown}");
            }
        }
    }
}

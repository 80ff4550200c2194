//! Programs that wait, that burn time, and that make processes and system calls.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::{Answer, ITSELF, measured, number, number_or, sys};

/// Says that it waits, so that a test knows when to send its signal.
pub(crate) fn sleep(args: &[String]) -> Answer {
    let seconds: f64 = number(args, 0, "SECONDS")?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|e| format!("SECONDS {seconds}: {e}"))?;
    sys::catch_end_signals()?;
    println!("Sleeping for {seconds} seconds");
    Ok(sys::wait_for_end_signal(Some(time))?.map_or(ExitCode::SUCCESS, |signal| ExitCode::from(128 | signal)))
}

pub(crate) fn pause(_: &[String]) -> Answer {
    sys::catch_end_signals()?;
    println!("Paused");
    let _ = sys::wait_for_end_signal(None)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn spin(args: &[String]) -> Answer {
    let seconds: f64 = number_or(args, 0, "SECONDS", f64::INFINITY)?;
    println!("Spinning");
    let began = Instant::now();
    let mut turns = 0_u64;
    while began.elapsed().as_secs_f64() < seconds {
        for _ in 0..10_000 {
            turns = std::hint::black_box(turns).wrapping_add(1);
        }
    }
    measured("turns", turns, began);
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn spawn(args: &[String]) -> Answer {
    let count: u32 = number(args, 0, "COUNT")?;
    println!("Spawning processes");
    let began = Instant::now();
    for _ in 0..count {
        let status = Command::new(ITSELF).arg("true").stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("A child ended with {status}").into());
        }
    }
    println!("Spawned {count} processes");
    measured("processes", count.into(), began);
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn getpid(args: &[String]) -> Answer {
    let count: u64 = number(args, 0, "COUNT")?;
    let began = Instant::now();
    for _ in 0..count {
        sys::getpid();
    }
    println!("Called getpid {count} times");
    measured("calls", count, began);
    Ok(ExitCode::SUCCESS)
}

/// Prints the error's number, or `ok` with what the call returned. A pointer among the arguments is one to nowhere.
pub(crate) fn call(args: &[String]) -> Answer {
    let arguments: Vec<u64> = (2..args.len()).map(|place| number(args, place, "ARG")).collect::<Result<_, _>>()?;
    let number = number(args, 1, "NUMBER")?;
    let answer = match args.first().map(String::as_str) {
        Some("64") => sys::call(number, &arguments),
        Some("32") => sys::call_32(number, &arguments),
        _ => return Err("ABI is neither 64 nor 32".into()),
    };
    match answer {
        answer if (-4095..0).contains(&answer) => println!("error {}", -answer),
        answer => println!("ok {answer}"),
    }
    Ok(ExitCode::SUCCESS)
}

//! Programs of one line.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use crate::{Answer, number};

pub(crate) fn hello(_: &[String]) -> Answer {
    println!("Hello from Duplex");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn succeed(_: &[String]) -> Answer {
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn fail(_: &[String]) -> Answer {
    Ok(ExitCode::FAILURE)
}

pub(crate) fn exit(args: &[String]) -> Answer {
    Ok(ExitCode::from(number::<u8>(args, 0, "CODE")?))
}

pub(crate) fn echo(args: &[String]) -> Answer {
    println!("{}", args.join(" "));
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn cat(args: &[String]) -> Answer {
    // Without a buffer: what comes in goes out at once.
    let mut to = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    if args.is_empty() {
        copy(&mut io::stdin().lock(), &mut to)?;
    }
    for path in args {
        let told = |e| format!("{path}: {e}");
        copy(&mut File::open(path).map_err(told)?, &mut to).map_err(told)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn copy(from: &mut dyn Read, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(buffer.get(..count).unwrap_or(&[]))?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

pub(crate) fn env(_: &[String]) -> Answer {
    for (name, value) in std::env::vars_os() {
        println!("{}={}", name.to_string_lossy(), value.to_string_lossy());
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn uname(_: &[String]) -> Answer {
    let names = rustix::system::uname();
    let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
    println!("{} {} {}", text(names.sysname()), text(names.release()), text(names.machine()));
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn id(_: &[String]) -> Answer {
    let mut groups: Vec<u32> = rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect();
    groups.sort_unstable();
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    println!("uid={uid} gid={gid} groups={}", groups.join(","));
    Ok(ExitCode::SUCCESS)
}

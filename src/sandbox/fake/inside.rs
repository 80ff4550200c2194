//! Further commands in a fake sandbox.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, PoisonError};

use duplex_copy::Base;

use super::{Fake, FakeError, Shared, spawn};
use crate::sandbox::inside::{Exec, Inside, Refusal};
use crate::sandbox::{Remote, SandboxError, Stdio};
use crate::spec::{
    Counters, Exit, Isolation, LimitChange, Outcome, ProcessEntry, ProcessSpec, SandboxId, Stats, Transfer, Usage,
};

/// Reaches into one fake.
#[derive(Debug)]
pub(super) struct FakeInside {
    id: SandboxId,
    isolation: Isolation,
    usage: Usage,
    args: Vec<String>,
    shared: Arc<Shared>,
}

impl FakeInside {
    pub(super) fn of(fake: &Fake) -> Self {
        Self {
            id: fake.spec.id.clone(),
            isolation: fake.isolation,
            usage: fake.usage,
            args: fake.spec.process.args.clone(),
            shared: Arc::clone(&fake.shared),
        }
    }

    fn error(&self, operation: &'static str, source: FakeError) -> SandboxError {
        let source: Box<dyn Error + Send + Sync> = match source {
            FakeError::Inside(refusal) => Box::new(refusal),
            other => Box::new(other),
        };
        SandboxError { operation, isolation: self.isolation, id: self.id.clone(), source }
    }

    /// Whether it is paused, if it runs.
    fn running(&self) -> Result<bool, Refusal> {
        let life = self.shared.lock();
        if life.started && life.outcome.is_none() { Ok(life.paused) } else { Err(Refusal::NotRunning) }
    }

    fn run(&self, process: &ProcessSpec, stdio: Stdio) -> Result<FakeExec, FakeError> {
        if self.running()? {
            return Err(Refusal::Paused.into());
        }
        let own = Arc::new(Shared::default());
        {
            let mut life = self.shared.lock();
            life.further.retain(|(_, other)| other.lock().outcome.is_none());
            life.further.push((process.args.clone(), Arc::clone(&own)));
        }
        spawn(process.args.clone(), stdio, &own)?;
        Ok(FakeExec(own))
    }

    /// In a folder of its own, which is all the root that a fake has.
    fn carry(&self, transfer: Transfer, stdio: Stdio) -> Result<FakeExec, FakeError> {
        if self.running()? {
            return Err(Refusal::Paused.into());
        }
        let folder = {
            let mut life = self.shared.lock();
            let made = life.folder.take().map_or_else(|| tempfile::tempdir().map(Arc::new), Ok);
            Arc::clone(life.folder.insert(made.map_err(FakeError::Folder)?))
        };
        let base = Base::within(File::open(folder.path()).map_err(FakeError::Folder)?.into());
        let own = Arc::new(Shared::default());
        let ends = Arc::clone(&own);
        let body = move || {
            let stdin = stdio.stdin.map(File::from);
            let (stdout, mut stderr) = (File::from(stdio.stdout), File::from(stdio.stderr));
            let carried = match stdin {
                Some(stdin) => duplex_copy::carry(&transfer, &base, stdin, stdout),
                None => duplex_copy::carry(&transfer, &base, io::empty(), stdout),
            };
            let failed = carried.inspect_err(|error| drop(writeln!(stderr, "{error}"))).is_err();
            drop(stderr);
            ends.end(Exit::Code(u8::from(failed)), None);
        };
        std::thread::Builder::new().name("fake copy".into()).spawn(body).map_err(FakeError::Thread)?;
        Ok(FakeExec(own))
    }

    fn set_paused(&self, paused: bool) -> Result<(), Refusal> {
        if self.running()? == paused {
            return Err(if paused { Refusal::AlreadyPaused } else { Refusal::NotPaused });
        }
        self.shared.lock().paused = paused;
        Ok(())
    }
}

impl Inside for FakeInside {
    fn exec(&self, process: &ProcessSpec, stdio: Stdio) -> Result<Box<dyn Exec>, SandboxError> {
        let exec = self.run(process, stdio).map_err(|e| self.error("run a command in", e))?;
        Ok(Box::new(exec))
    }

    fn copy(&self, transfer: &Transfer, stdio: Stdio) -> Result<Box<dyn Exec>, SandboxError> {
        let copy = self.carry(transfer.clone(), stdio).map_err(|e| self.error("copy files of", e))?;
        Ok(Box::new(copy))
    }

    fn pause(&self) -> Result<(), SandboxError> {
        self.set_paused(true).map_err(|e| self.error("pause", e.into()))
    }

    fn unpause(&self) -> Result<(), SandboxError> {
        self.set_paused(false).map_err(|e| self.error("unpause", e.into()))
    }

    fn processes(&self) -> Result<Vec<ProcessEntry>, SandboxError> {
        self.running().map_err(|e| self.error("list the processes of", e.into()))?;
        let life = self.shared.lock();
        let further = life.further.iter().filter(|(_, own)| own.lock().outcome.is_none()).map(|(args, _)| args);
        let all = std::iter::once(&self.args).chain(further);
        Ok((1..)
            .zip(all)
            .map(|(pid, args)| ProcessEntry { pid, command: args.join(" "), ..Default::default() })
            .collect())
    }

    fn change(&self, _: &LimitChange) -> Result<(), SandboxError> {
        self.running().map(drop).map_err(|e| self.error("change the limits of", e.into()))
    }

    fn stats(&self) -> Result<Stats, SandboxError> {
        self.running().map_err(|e| self.error("measure", e.into()))?;
        let Usage { memory_bytes, cpu_usec, pids, .. } = self.usage;
        let host = Counters { memory_bytes, cpu_usec, pids, ..Counters::default() };
        Ok(Stats { inside: Some(host), host })
    }
}

/// A further command in a fake.
#[derive(Debug)]
struct FakeExec(Arc<Shared>);

impl Exec for FakeExec {
    fn remote(&self) -> Box<dyn Remote> {
        Box::new(super::FakeRemote(Arc::clone(&self.0)))
    }

    fn ended(&self) -> Option<Outcome> {
        self.0.lock().outcome.clone()
    }

    fn wait(&mut self) -> Result<Outcome, SandboxError> {
        let failed = || Outcome { exit: Exit::SandboxFailed, oom: false, reason: None };
        Ok(self.0.wait(None).unwrap_or_else(failed))
    }
}

impl Drop for FakeExec {
    fn drop(&mut self) {
        self.0.end(Exit::Signal(9), None);
    }
}

impl Shared {
    /// Its further commands end with it.
    pub(super) fn end_further(&self) {
        let further = std::mem::take(&mut self.life.lock().unwrap_or_else(PoisonError::into_inner).further);
        for (_, own) in further {
            own.end(Exit::Signal(9), None);
        }
    }
}

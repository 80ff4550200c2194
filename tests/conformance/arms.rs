//! The backends that the promises are tried on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use duplex::sandbox::container::ContainerBackend;
use duplex::sandbox::fake::FakeBackend;
use duplex::sandbox::microvm::MicroVmBackend;
use duplex::sandbox::{Backend, Sandbox, SandboxError, Stdio};
use duplex::spec::{Installation, Isolation, NetworkMode, SandboxSpec, UserNamespace};

use super::image::{self, OneFile};
use super::stage::Stage;
use crate::runner::Skip;

/// `duplex`, copied to the temporary folder once: in the lab every page of a program on the shared root costs a trip to the host.
pub(crate) fn program() -> PathBuf {
    static COPY: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_duplex"), dir.path().join("duplex")).unwrap();
        dir
    });
    COPY.path().join("duplex")
}

/// The built parts, copied for the same reason.
fn parts() -> Result<&'static Path, Skip> {
    static COPY: LazyLock<Result<tempfile::TempDir, Skip>> = LazyLock::new(|| {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/duplex");
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("guest")).unwrap();
        for part in ["duplex-vmm", "guest/vmlinux", "guest/initramfs.cpio"] {
            let path = built.join(part);
            std::fs::copy(&path, dir.path().join(part))
                .map_err(|e| Skip(format!("{}: {e} (make build)", path.display())))?;
        }
        Ok(dir)
    });
    COPY.as_ref().map(tempfile::TempDir::path).map_err(|skip| Skip(skip.0.clone()))
}

/// Where everything is, with a state folder of its own.
fn installation(state: &Path, duplex: &Path, parts: &Path) -> Installation {
    Installation {
        monitor: parts.join("duplex-vmm"),
        kernel: parts.join("guest/vmlinux"),
        initramfs: parts.join("guest/initramfs.cpio"),
        workloads: PathBuf::new(),
        store: state.join("store"),
        state: state.to_owned(),
        duplex: duplex.to_owned(),
    }
}

pub(crate) fn fake() -> Result<Stage, Skip> {
    let state = tempfile::tempdir().unwrap();
    Ok(Stage::new(Box::new(FakeBackend::new(Isolation::Container)), state))
}

pub(crate) fn container() -> Result<Stage, Skip> {
    containers(|backend| backend)
}

/// Containers in a user namespace.
pub(crate) fn private() -> Result<Stage, Skip> {
    let Stage { backend, state } = container()?;
    Ok(Stage::new(Box::new(WithUsers(backend)), state))
}

/// Gives each sandbox users of its own, unless it has the host's network.
#[derive(Debug)]
struct WithUsers(Box<dyn Backend>);

impl Backend for WithUsers {
    fn isolation(&self) -> Isolation {
        self.0.isolation()
    }

    fn create(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, SandboxError> {
        let mut spec = spec.clone();
        if spec.network.mode != NetworkMode::Host {
            spec.security.users = UserNamespace::Private;
        }
        self.0.create(&spec, stdio)
    }
}

pub(crate) fn crun() -> Result<Stage, Skip> {
    containers(|backend| backend.with_runtime(Path::new("/usr/bin/crun")))
}

pub(crate) fn runc() -> Result<Stage, Skip> {
    containers(|backend| backend.with_runtime(Path::new("/usr/sbin/runc")))
}

fn containers(adapt: impl FnOnce(ContainerBackend) -> ContainerBackend) -> Result<Stage, Skip> {
    let state = tempfile::tempdir().unwrap();
    let images = Arc::new(OneFile(image::path()?.to_owned()));
    let backend = adapt(ContainerBackend::new(&installation(state.path(), &program(), Path::new("")), images));
    Ok(Stage::new(Box::new(backend), state))
}

pub(crate) fn microvm() -> Result<Stage, Skip> {
    let state = tempfile::tempdir().unwrap();
    let images = Arc::new(OneFile(image::path()?.to_owned()));
    let backend = MicroVmBackend::new(installation(state.path(), &program(), parts()?), images);
    Ok(Stage::new(Box::new(backend), state))
}

/// Containers with a given state folder, for a process that is killed.
pub(crate) fn container_at(state: &Path, duplex: &Path, image: &Path) -> Stage {
    let images = Arc::new(OneFile(image.to_owned()));
    let backend = ContainerBackend::new(&installation(state, duplex, Path::new("")), images);
    Stage::new(Box::new(backend), tempfile::tempdir().unwrap())
}

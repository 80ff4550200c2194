//! `-v`, `--mount` and the image's volumes, in Docker's words.

use std::path::{Path, PathBuf};

use super::super::args::RunArgs;
use crate::spec::{MemorySize, MountSource, MountSpec, SandboxId, Tmpfs};
use crate::volume;

/// Most mounts of a sandbox.
const MOST: usize = 64;

/// Where a sandbox has mounts of its own.
const TAKEN: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Why a mount means nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum MountsError {
    /// Not of the form.
    #[error(
        "invalid volume specification: '{0}': write NAME:/path, /host/path:/path or /path, and perhaps :ro behind it"
    )]
    Volume(String),
    /// What is behind the second colon.
    #[error("invalid mode: {0}: ro, rw and nocopy are known")]
    Mode(String),
    /// A part of `--mount`.
    #[error("invalid argument '{text}' for --mount: {why}")]
    Mount {
        /// The whole argument.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// Where it is to be.
    #[error("invalid mount path: '{0}': mount path must be absolute")]
    Relative(String),
    /// The root, or where something of the sandbox is.
    #[error("invalid mount path: '{0}': nothing can be mounted over /, /proc, /sys and /dev, or below the last three")]
    Taken(String),
    /// Two at one place.
    #[error("Duplicate mount point: {0}")]
    Duplicate(String),
    /// One above the other that is mounted later.
    #[error("{0} would be hidden by the tmpfs at {1}, which is mounted later: mount one of them elsewhere")]
    Hidden(String, String),
    /// Too many.
    #[error("A sandbox has at most {MOST} mounts, not {0}")]
    Many(usize),
    /// Not a name.
    #[error("{0}")]
    Name(String),
}

/// The mounts of a command line and of an image, those above before those below. The command line's file systems in memory are in `tmpfs`,
/// and those that `--mount` asks for are added to them.
pub(crate) fn mounts(
    args: &RunArgs,
    of_image: &[String],
    id: &SandboxId,
    tmpfs: &mut Vec<Tmpfs>,
) -> Result<Vec<MountSpec>, MountsError> {
    let mut mounts = Vec::new();
    for mount in typed(args)? {
        match mount {
            Mount::Spec(mount) => mounts.push(mount),
            Mount::Memory(memory) => tmpfs.push(memory),
        }
    }
    for target in of_image {
        let target = clean(target)?;
        // What the user mounts there takes its place.
        if mounts.iter().all(|m| m.target != target) && tmpfs.iter().all(|t| t.path != target) {
            mounts.push(MountSpec { target, read_only: false, source: nameless(true) });
        }
    }
    if mounts.len() > MOST {
        return Err(MountsError::Many(mounts.len()));
    }
    // Stable: those of the same depth stay in the order in which they were given.
    mounts.sort_by_key(|m| m.target.matches('/').count());
    for mount in &mounts {
        if let Some(above) = tmpfs.iter().find(|t| Path::new(&mount.target).starts_with(&t.path)) {
            let (target, path) = (mount.target.clone(), above.path.clone());
            return Err(if target == path { MountsError::Duplicate(path) } else { MountsError::Hidden(target, path) });
        }
    }
    for (number, mount) in mounts.iter_mut().enumerate() {
        if let MountSource::Volume { name, anonymous: true, .. } = &mut mount.source {
            *name = format!("{id}-{number}");
        }
    }
    Ok(mounts)
}

/// Folders and files of the host that a command line names. What cannot be understood is left out.
pub(crate) fn host_paths(args: &RunArgs) -> Vec<PathBuf> {
    let paths = typed(args).unwrap_or_default().into_iter().filter_map(|mount| match mount {
        Mount::Spec(MountSpec { source: MountSource::Bind { path, .. }, .. }) => Some(path),
        _ => None,
    });
    // One that has still to be made is told by the folder that will be made first.
    let is_made = |path: &Path| path.parent().is_none_or(|above| above.as_os_str().is_empty() || above.exists());
    paths.map(|path| path.ancestors().find(|path| is_made(path)).unwrap_or(&path).to_owned()).collect()
}

/// One mount of a command line.
enum Mount {
    Spec(MountSpec),
    Memory(Tmpfs),
}

impl Mount {
    fn target(&self) -> &str {
        match self {
            Self::Spec(mount) => &mount.target,
            Self::Memory(memory) => &memory.path,
        }
    }
}

fn typed(args: &RunArgs) -> Result<Vec<Mount>, MountsError> {
    let mut mounts: Vec<Mount> = Vec::new();
    let short = args.volume.iter().map(|text| short(text).map(Mount::Spec));
    for mount in short.chain(args.mount.iter().map(|text| long(text))) {
        let mount = mount?;
        if mounts.iter().any(|m| m.target() == mount.target()) {
            return Err(MountsError::Duplicate(mount.target().to_owned()));
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

fn nameless(copy: bool) -> MountSource {
    MountSource::Volume { name: String::new(), anonymous: true, copy }
}

fn named(name: &str, copy: bool) -> Result<MountSource, MountsError> {
    volume::check(name).map_err(|e| MountsError::Name(e.to_string()))?;
    Ok(MountSource::Volume { name: name.to_owned(), anonymous: false, copy })
}

/// `-v [SOURCE:]TARGET[:MODE,...]`.
fn short(text: &str) -> Result<MountSpec, MountsError> {
    let refuse = || MountsError::Volume(text.to_owned());
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, modes) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, modes] if !modes.is_empty() => (Some(*source), *target, *modes),
        _ => return Err(refuse()),
    };
    if target.is_empty() || source.is_some_and(str::is_empty) {
        return Err(refuse());
    }
    let (mut read_only, mut copy) = (false, true);
    for mode in modes.split(',').filter(|m| !m.is_empty()) {
        match mode {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "nocopy" => copy = false,
            other => return Err(MountsError::Mode(other.to_owned())),
        }
    }
    let source = match source {
        None => nameless(copy),
        Some(path) if path.starts_with('/') || is_relative(path) => {
            MountSource::Bind { path: path.into(), create: true }
        }
        Some(name) => named(name, copy)?,
    };
    Ok(MountSpec { target: clean(target)?, read_only, source })
}

fn is_relative(path: &str) -> bool {
    matches!(path, "." | "..") || path.starts_with("./") || path.starts_with("../")
}

/// What the words of one `--mount` say.
#[derive(Default)]
struct Words<'a> {
    kind: &'a str,
    source: &'a str,
    target: &'a str,
    read_only: bool,
    no_copy: bool,
    bytes: Option<u64>,
    mode: Option<u32>,
}

/// `--mount type=volume|bind|tmpfs,...`.
fn long(text: &str) -> Result<Mount, MountsError> {
    let refuse = |why: String| MountsError::Mount { text: text.to_owned(), why };
    let mut words = Words { kind: "volume", ..Words::default() };
    for word in text.split(',') {
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        take(&mut words, key, value).map_err(refuse)?;
    }
    if words.target.is_empty() {
        return Err(refuse("target is required".to_owned()));
    }
    let only = |given: bool, option: &str, kind: &str| {
        if given && words.kind != kind { Err(refuse(format!("{option} is for type={kind}"))) } else { Ok(()) }
    };
    only(words.no_copy, "volume-nocopy", "volume")?;
    only(words.bytes.is_some(), "tmpfs-size", "tmpfs")?;
    only(words.mode.is_some(), "tmpfs-mode", "tmpfs")?;
    let source = match words.kind {
        "volume" if words.source.is_empty() => nameless(!words.no_copy),
        "volume" => named(words.source, !words.no_copy)?,
        "bind" if words.source.is_empty() => return Err(refuse("source is required for type=bind".to_owned())),
        "bind" if words.source.starts_with('/') || is_relative(words.source) => {
            MountSource::Bind { path: words.source.into(), create: false }
        }
        "bind" => return Err(refuse(format!("mount path must be absolute: {}", words.source))),
        "tmpfs" if !words.source.is_empty() => return Err(refuse("type=tmpfs has no source".to_owned())),
        "tmpfs" => return Ok(Mount::Memory(memory(&words)?)),
        other => return Err(refuse(format!("mount type unknown: {other} (volume, bind and tmpfs are known)"))),
    };
    Ok(Mount::Spec(MountSpec { target: clean(words.target)?, read_only: words.read_only, source }))
}

fn memory(words: &Words<'_>) -> Result<Tmpfs, MountsError> {
    let mut options = vec![format!("mode={:o}", words.mode.unwrap_or(0o1777))];
    options.extend(words.bytes.map(|bytes| format!("size={bytes}")));
    let read_only = words.read_only;
    Ok(Tmpfs { path: clean(words.target)?, options: options.join(","), read_only, ..Tmpfs::default() })
}

fn take<'a>(words: &mut Words<'a>, key: &str, value: Option<&'a str>) -> Result<(), String> {
    let given = value.filter(|v| !v.is_empty()).ok_or_else(|| format!("{key} has no value"));
    let flag = || match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("invalid value for {key}: {other}")),
    };
    match key {
        "type" => words.kind = given?,
        "source" | "src" => words.source = given?,
        "target" | "destination" | "dst" => words.target = given?,
        "readonly" | "ro" => words.read_only = flag()?,
        "volume-nocopy" => words.no_copy = flag()?,
        "tmpfs-size" => {
            let size: MemorySize = given?.parse().map_err(|_| format!("invalid value for {key}"))?;
            words.bytes = Some(size.0);
        }
        "tmpfs-mode" => {
            let mode = u32::from_str_radix(given?, 8).ok().filter(|mode| *mode <= 0o7777);
            words.mode = Some(mode.ok_or_else(|| format!("invalid value for {key}: an octal number up to 7777"))?);
        }
        other => return Err(format!("unexpected key '{other}'")),
    }
    Ok(())
}

/// The path as it is compared and used: absolute, without `.`, `..` and double slashes.
fn clean(target: &str) -> Result<String, MountsError> {
    if !target.starts_with('/') || target.contains('\0') {
        return Err(MountsError::Relative(target.replace('\0', "?")));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let clean = format!("/{}", parts.join("/"));
    if clean == "/" || TAKEN.iter().any(|taken| Path::new(&clean).starts_with(taken)) {
        return Err(MountsError::Taken(clean));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Run {
        #[command(flatten)]
        args: RunArgs,
    }

    fn meant(line: &str, of_image: &[&str]) -> Result<Vec<MountSpec>, MountsError> {
        let line = format!("--isolation container {line} img");
        let args = Run::try_parse_from(["run"].into_iter().chain(line.split_whitespace())).unwrap().args;
        let of_image: Vec<String> = of_image.iter().map(|v| (*v).to_owned()).collect();
        mounts(&args, &of_image, &"0123456789ab".parse().unwrap(), &mut Vec::new())
    }

    fn volume(target: &str, name: &str, read_only: bool, copy: bool) -> MountSpec {
        let source = MountSource::Volume { name: name.into(), anonymous: name.starts_with("0123"), copy };
        MountSpec { target: target.into(), read_only, source }
    }

    fn bind(target: &str, path: &str, read_only: bool, create: bool) -> MountSpec {
        MountSpec { target: target.into(), read_only, source: MountSource::Bind { path: path.into(), create } }
    }

    #[test]
    fn both_ways_to_write_a_mount_mean_the_same() {
        for (line, expected) in [
            ("-v data:/srv", volume("/srv", "data", false, true)),
            ("--mount type=volume,source=data,target=/srv", volume("/srv", "data", false, true)),
            ("--mount src=data,dst=/srv/,ro,volume-nocopy", volume("/srv", "data", true, false)),
            ("-v data:/srv:ro,nocopy", volume("/srv", "data", true, false)),
            ("-v /a/../srv//x/.", volume("/srv/x", "0123456789ab-0", false, true)),
            ("--mount target=/srv", volume("/srv", "0123456789ab-0", false, true)),
            ("-v /etc:/srv:ro", bind("/srv", "/etc", true, true)),
            ("-v ./here:/srv:rw", bind("/srv", "./here", false, true)),
            ("--mount type=bind,src=/etc,destination=/srv,readonly=true", bind("/srv", "/etc", true, false)),
        ] {
            assert_eq!(meant(line, &[]).unwrap(), [expected], "{line}");
        }
        let words = ["run", "--mount", "type=tmpfs,dst=/t/,tmpfs-size=64k,tmpfs-mode=0700", "-v", "x1:/t/x", "img"];
        let mut args = Run::try_parse_from(words).unwrap().args;
        let id = "0123456789ab".parse().unwrap();
        let mut memory = Vec::new();
        assert!(matches!(mounts(&args, &[], &id, &mut memory), Err(MountsError::Hidden(..))));
        args.volume.clear();
        memory.clear();
        assert!(
            mounts(&args, &["/t".into()], &id, &mut memory).unwrap().is_empty(),
            "the user's takes the image's place"
        );
        assert_eq!((memory[0].path.as_str(), memory[0].options.as_str()), ("/t", "mode=700,size=65536"));
    }

    #[test]
    fn an_images_volumes_are_anonymous_unless_the_user_mounts_something_there() {
        let made = meant("-v data:/srv/deep -v other:/a", &["/srv", "/a/"]).unwrap();
        let told: Vec<(&str, Option<&str>)> = made.iter().map(|m| (m.target.as_str(), m.volume())).collect();
        assert_eq!(
            told,
            [("/a", Some("other")), ("/srv", Some("0123456789ab-1")), ("/srv/deep", Some("data"))],
            "those above come first"
        );
    }

    #[test]
    fn words_that_mean_nothing_are_named() {
        for (line, word) in [
            ("-v data:/a:ro:rw", "data:/a:ro:rw"),
            ("-v :/a", ":/a"),
            ("-v data:", "data:"),
            ("-v data:/a:rx", "invalid mode: rx"),
            ("-v data:rel", "must be absolute"),
            ("-v a/b:/a", "a/b"),
            ("-v data:/", "'/'"),
            ("-v data:/proc/x", "/proc/x"),
            ("-v data:/a/../dev", "/dev"),
            ("-v data:/a -v other:/a/", "Duplicate mount point: /a"),
            ("--mount source=data", "target is required"),
            ("--mount type=disk,target=/a", "mount type unknown: disk"),
            ("--mount type=bind,target=/a", "source is required"),
            ("--mount type=bind,source=a,target=/a", "absolute"),
            ("--mount type=tmpfs,source=a,target=/a", "no source"),
            ("--mount colour=red,target=/a", "unexpected key 'colour'"),
            ("--mount tmpfs-size=1m,target=/a", "type=tmpfs"),
            ("--mount type=tmpfs,tmpfs-mode=9,target=/a", "tmpfs-mode"),
            ("--mount ro=maybe,target=/a", "maybe"),
        ] {
            let words = meant(line, &[]).unwrap_err().to_string();
            assert!(words.contains(word), "{words}");
        }
        assert_eq!(meant("", &["rel"]), Err(MountsError::Relative("rel".into())));
        let many: Vec<String> = (0..65).map(|n| format!("/v{n}")).collect();
        assert_eq!(meant("", &many.iter().map(String::as_str).collect::<Vec<_>>()), Err(MountsError::Many(65)));
    }
}

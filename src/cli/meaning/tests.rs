use clap::Parser;

use super::*;
use crate::spec::{
    Capability, Cpus, DEFAULT_CAPABILITIES, HostAddress, NetRate, NetworkSpec, Protocol, Security, UserNamespace,
};

#[derive(Debug, Parser)]
#[command(disable_help_flag = true)]
struct Run {
    #[command(flatten)]
    args: RunArgs,
}

const ID: &str = "0123456789ab";

fn digest() -> Digest {
    Digest::from_sha256([7; 32])
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

pub(super) fn image() -> ImageDefaults {
    ImageDefaults {
        entrypoint: strings(&["/bin/tool"]),
        cmd: strings(&["serve", "--all"]),
        env: strings(&["LANG=C", "MODE=image"]),
        working_dir: "/srv".to_owned(),
        user: "app".to_owned(),
        ..ImageDefaults::default()
    }
}

fn args(line: &str) -> RunArgs {
    let words = line.split_whitespace().map(|w| if w == "''" { "" } else { w });
    Run::try_parse_from(["run"].into_iter().chain(words)).unwrap().args
}

fn meant_for(line: &str, image: &ImageDefaults) -> Result<SandboxSpec, MeaningError> {
    let variable = |name: &str| (name == "CALLER").then(|| "here".to_owned());
    let files = [("env".to_owned(), "# comment\n\nFILE=1\nMODE=file\nCALLER\n".to_owned())];
    let around = Surroundings {
        id: ID.parse().unwrap(),
        variable: &variable,
        env_files: if line.contains("--env-file") { &files } else { &[] },
        profile: None,
        terminal: None,
    };
    sandbox(&args(line), image, &digest(), &around)
}

pub(super) fn refused(line: &str) -> MeaningError {
    meant_for(line, &image()).unwrap_err()
}

pub(super) fn meant(line: &str) -> SandboxSpec {
    meant_for(line, &image()).unwrap()
}

/// What `duplex run img` means.
fn plain() -> SandboxSpec {
    SandboxSpec {
        id: ID.parse().unwrap(),
        name: None,
        isolation: Isolation::MicroVm,
        reference: "img".to_owned(),
        image: digest(),
        process: ProcessSpec {
            args: strings(&["/bin/tool", "serve", "--all"]),
            env: strings(&[
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOSTNAME=0123456789ab",
                "LANG=C",
                "MODE=image",
            ]),
            cwd: "/srv".to_owned(),
            user: "app".to_owned(),
            terminal: None,
            stdin: false,
            capabilities: DEFAULT_CAPABILITIES.to_vec(),
            no_new_privileges: false,
            limits: Vec::new(),
        },
        hostname: ID.to_owned(),
        limits: Limits::default(),
        read_only: false,
        init: false,
        kernel: None,
        kernel_log: None,
        cold: false,
        from: None,
        runtime: None,
        host_root: None,
        tmpfs: Vec::new(),
        sysctls: Vec::new(),
        devices: Vec::new(),
        network: NetworkSpec { mode: NetworkMode::User, ..NetworkSpec::default() },
        mounts: Vec::new(),
        security: Security::default(),
    }
}

#[test]
fn a_plain_run_is_the_image_as_a_microvm() {
    assert_eq!(meant("img"), plain());
    assert_eq!(meant("--rm --pull never --isolation microvm img"), plain(), "defaults said aloud change nothing");
}

#[test]
fn every_way_to_type_a_setting_means_the_same() {
    for (a, b) in [
        ("-it img", "--interactive --tty img"),
        ("-m 512m img", "--memory=536870912 img"),
        ("-m512MiB img", "--memory 524288k img"),
        ("--cpus 1.50 img", "--cpus 1.5 img"),
        ("-w /x -u root:root img", "--user=root:root --workdir=/x img"),
        ("-e A=1 -e B=2 img", "--env A=1 --env=B=2 img"),
        ("-e A=0 -e A=1 img", "-e A=1 img"),
        ("-h box img", "--hostname box img"),
        ("--pids-limit -1 img", "img"),
        ("--memory-swap 0 img", "img"),
        ("-m 1g --memory-swap 2048m img", "-m 1024m --memory-swap 2g img"),
        ("--cap-add net_admin img", "--cap-add CAP_NET_ADMIN img"),
        ("--cap-add chown img", "img"),
        ("img serve --all", "img"),
    ] {
        assert_eq!(meant(a), meant(b), "'{a}' and '{b}'");
    }
}

#[test]
fn limits_and_walls_arrive_in_the_spec() {
    let expected = SandboxSpec {
        isolation: Isolation::Container,
        name: Some("web-1".to_owned()),
        limits: Limits {
            memory: Some(MemorySize(64 * MIB)),
            cpus: Some(Cpus(2500)),
            pids: Some(100),
            ..Limits::default()
        },
        read_only: true,
        security: Security { users: UserNamespace::Private, ..Security::default() },
        ..plain()
    };
    let line = "--isolation container --name web-1 -m 64m --cpus 2.5 --pids-limit 100 --read-only img";
    assert_eq!(meant(line), expected);
    let kernel = SandboxSpec { kernel: Some("/k".into()), kernel_log: Some("log".into()), ..plain() };
    assert_eq!(meant("--kernel /k --kernel-log log img"), kernel);
    assert_eq!(meant("--cold img"), SandboxSpec { cold: true, ..plain() });
}

#[test]
fn swap_follows_docker() {
    let limits = |line: &str| meant(line).limits;
    assert_eq!(limits("-m 64m img").swap, MemorySwap::AsMuchAgain);
    assert_eq!(limits("-m 64m --memory-swap 64m img").swap, MemorySwap::Total(MemorySize(64 * MIB)));
    assert_eq!(limits("-m 64m --memory-swap -1 img").swap, MemorySwap::Unlimited);
    assert_eq!(limits("--memory-swap -1 img").swap, MemorySwap::Unlimited);
}

#[test]
fn entrypoint_and_command_follow_docker() {
    for (line, expected) in [
        ("img", &["/bin/tool", "serve", "--all"][..]),
        ("img x -y", &["/bin/tool", "x", "-y"]),
        ("--entrypoint sh img", &["sh"]),
        ("--entrypoint sh img -c true", &["sh", "-c", "true"]),
        ("--entrypoint '' img ls", &["ls"]),
    ] {
        assert_eq!(meant(line).process.args, expected, "{line}");
    }
    let none = Err(MeaningError::NoCommand("img".to_owned()));
    assert_eq!(meant_for("--entrypoint '' img", &image()), none);
    assert_eq!(meant_for("img", &ImageDefaults::default()), none);
    let bare = meant_for("img sh", &ImageDefaults::default()).unwrap();
    assert_eq!((bare.process.args, bare.process.cwd, bare.process.user), (strings(&["sh"]), "/".into(), "".into()));
}

#[test]
fn variables_follow_docker() {
    let env = |line: &str| meant(line).process.env[2..].to_vec();
    assert_eq!(env("-e MODE=flag -e NEW=1 img"), strings(&["LANG=C", "MODE=flag", "NEW=1"]), "places are kept");
    assert_eq!(env("-e CALLER img"), strings(&["LANG=C", "MODE=image", "CALLER=here"]));
    assert_eq!(env("-e LANG img"), strings(&["MODE=image"]), "a name the caller lacks is taken away");
    assert_eq!(env("-e EMPTY= img"), strings(&["LANG=C", "MODE=image", "EMPTY="]));
    assert_eq!(env("--env-file f img"), strings(&["LANG=C", "MODE=file", "FILE=1", "CALLER=here"]));
    assert_eq!(env("-e MODE=flag --env-file f img")[1], "MODE=flag", "flags win over files");
    assert!(meant("-t img").process.env.contains(&"TERM=xterm".to_owned()));
}

#[test]
fn a_terminal_has_a_size_even_if_the_caller_has_none() {
    assert_eq!(meant("-t img").process.terminal, Some(TerminalSize { rows: 24, columns: 80 }));
    assert!(meant("-i img").process.stdin);
}

#[test]
fn capabilities_follow_docker() {
    let caps = |line: &str| meant(line).process.capabilities;
    assert_eq!(caps("--cap-drop all img"), []);
    assert_eq!(caps("--cap-drop ALL --cap-add CHOWN img"), [Capability(0)]);
    assert_eq!(caps("--cap-add ALL img").len(), 41);
    assert_eq!(caps("--cap-add ALL --cap-drop SYS_ADMIN img").len(), 40);
    assert_eq!(caps("--cap-drop MKNOD img").len(), 13);
}

#[test]
fn nonsense_is_refused_by_name() {
    let owned = str::to_owned;
    for (line, error) in [
        ("-e =1 img", MeaningError::Variable(owned("=1"))),
        ("-w tmp img", MeaningError::Workdir(owned("tmp"))),
        ("--cap-add FLY img", MeaningError::Capability(owned("FLY"))),
        ("--name -x img", MeaningError::Name(owned("-x"))),
        ("--name ../../etc img", MeaningError::Name(owned("../../etc"))),
        ("--hostname a/b img", MeaningError::Hostname(owned("a/b"))),
        ("-m 1m img", MeaningError::Memory(MemorySize(MIB))),
        ("--memory-swap 64m img", MeaningError::SwapAlone),
        (
            "-m 64m --memory-swap 63m img",
            MeaningError::Swap { total: MemorySize(63 * MIB), memory: MemorySize(64 * MIB) },
        ),
        ("--cpus 9 img", MeaningError::Vcpus(9)),
        ("--pids-limit -7 img", MeaningError::Pids(-7)),
        ("-c 1 img", MeaningError::Shares(1)),
        ("--isolation container --kernel k img", MeaningError::MicroVmOnly("--kernel")),
        ("--isolation container --cold img", MeaningError::MicroVmOnly("--cold")),
        ("--net host img", MeaningError::HostNetwork),
        ("-p 1-600:1-600 img", MeaningError::Published(600)),
        ("-p x img", MeaningError::Network(NetworkError::Publish(owned("x")))),
        ("--add-host x img", MeaningError::Network(NetworkError::Host(owned("x")))),
        ("--net none --net-rate 1mbit img", MeaningError::NetworkRate(NetworkMode::None)),
        ("--isolation container --net host --net-rate 1mbit img", MeaningError::NetworkRate(NetworkMode::Host)),
        ("--net none -p 80:80 img", MeaningError::NoNetwork { option: "-p", mode: NetworkMode::None }),
        ("--net none --dns 192.0.2.1 img", MeaningError::NoNetwork { option: "--dns", mode: NetworkMode::None }),
        (
            "--isolation container --net host -p 80 img",
            MeaningError::NoNetwork { option: "-p", mode: NetworkMode::Host },
        ),
    ] {
        let line = line.replace("--name -", "--name=-");
        assert_eq!(meant_for(&line, &image()), Err(error), "{line}");
    }
    assert!(meant_for("--isolation container --cpus 9 img", &image()).is_ok());
}

#[test]
fn networks_follow_docker() {
    let network = |line: &str| meant(line).network;
    assert_eq!(network("img").mode, NetworkMode::User);
    assert_eq!(network("--net none img"), NetworkSpec::default());
    assert_eq!(network("--isolation container --network host img").mode, NetworkMode::Host);
    assert_eq!(network("--net bridge:app --net-rate 10mbit img").rate.map(NetRate::bits), Some(10_000_000));
    let parameters = |line: &str| meant(line).sysctls.into_iter().map(|s| s.value).collect::<Vec<_>>();
    assert_eq!(parameters("--net-rate 64kbit img"), ["4096 65536 65536"]);
    let own = "--sysctl net.ipv4.tcp_rmem=4096 --net-rate 4mbit img";
    assert_eq!(parameters(own), ["4096 131072 250000", "4096"], "the last one holds");
    let full = network("-p 8080:80 -p 53:53/udp --dns 192.0.2.1 --add-host db:192.0.2.7 --add-host h:host-gateway img");
    assert_eq!(
        full.publish.iter().map(|p| (p.host, p.guest, p.protocol)).collect::<Vec<_>>(),
        [(8080, 80, Protocol::Tcp), (53, 53, Protocol::Udp)]
    );
    assert_eq!((full.dns.len(), full.hosts.len()), (1, 2));
    assert_eq!(full.hosts[1], ("h".to_owned(), HostAddress::Gateway));
}

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A host of these files.
fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
    root
}

fn status(checks: &[Check], name: &str) -> CheckStatus {
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}: {checks:#?}")).status
}

const GOOD: [(&str, &str); 9] = [
    ("proc/cpuinfo", "flags\t: fpu\nmicrocode\t: 0x2b"),
    ("proc/cmdline", "root=/dev/vda mitigations=auto"),
    ("sys/devices/system/cpu/vulnerabilities/meltdown", "Not affected"),
    ("sys/devices/system/cpu/vulnerabilities/spectre_v1", "Mitigation: usercopy/swapgs barriers"),
    ("sys/devices/system/cpu/smt/active", "0"),
    ("sys/kernel/mm/ksm/run", "0"),
    ("proc/sys/kernel/unprivileged_bpf_disabled", "2"),
    ("proc/sys/kernel/kptr_restrict", "1"),
    ("proc/version", "Linux version 6.1.0-41-amd64 (x) (gcc) #1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (2025-11-09)"),
];

#[test]
fn a_good_host_has_nothing_to_mend() {
    let checks = checks(host(&GOOD).path());
    assert!(checks.iter().all(|check| check.status == CheckStatus::Ok && check.mend.is_none()), "{checks:#?}");
    let flaws = checks.iter().find(|check| check.name == "processor flaws").unwrap();
    assert_eq!(flaws.found, "1 not there, 1 defended against, 0 open");
}

/// Each of these alone is seen, under its name, with a mend.
#[test]
fn what_weakens_the_walls_is_named() {
    let flaw = |name: &str| format!("{FLAWS}/{name}");
    let cases: [(&str, String, &str); 13] = [
        ("l1tf", flaw("l1tf"), "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable"),
        ("tsx_async_abort", flaw("tsx_async_abort"), "Vulnerable: Clear CPU buffers attempted, no microcode"),
        ("itlb_multihit", flaw("itlb_multihit"), "KVM: Vulnerable"),
        ("microcode", flaw("old_microcode"), "Vulnerable"),
        ("command line", "proc/cmdline".into(), "quiet mitigations=off"),
        ("command line", "proc/cmdline".into(), "quiet kvm_intel.vmentry_l1d_flush=never"),
        ("SMT", "sys/devices/system/cpu/smt/active".into(), "1"),
        ("KSM", "sys/kernel/mm/ksm/run".into(), "1"),
        ("unprivileged BPF", "proc/sys/kernel/unprivileged_bpf_disabled".into(), "0"),
        ("kernel addresses", "proc/sys/kernel/kptr_restrict".into(), "0"),
        ("kernel holes", "proc/version".into(), "Linux version 5.15.10 (x)"),
        ("kernel holes", "proc/version".into(), "Linux version 5.14.0-70.el9.x86_64 (x)"),
        ("view", "proc/cpuinfo".into(), "flags\t: fpu hypervisor"),
    ];
    for (name, path, text) in cases {
        let root = host(&[&GOOD[..], &[(&path, text)]].concat());
        let checks = checks(root.path());
        let bad = |check: &&Check| check.status != CheckStatus::Ok && check.name != "processor flaws";
        let bad: Vec<&Check> = checks.iter().filter(bad).collect();
        assert_eq!(bad.iter().map(|check| check.name.as_str()).collect::<Vec<_>>(), [name], "{text}");
        assert!(bad[0].mend.is_some());
        let flaw = path.starts_with(FLAWS) && name != "microcode";
        assert_eq!(status(&checks, "processor flaws") == CheckStatus::Warn, flaw, "{name}");
    }
    let root = host(&[&GOOD[..], &[("dev/kvm", "")]].concat());
    fs::set_permissions(root.path().join("dev/kvm"), fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(status(&checks(root.path()), "/dev/kvm"), CheckStatus::Warn);
    fs::set_permissions(root.path().join("dev/kvm"), fs::Permissions::from_mode(0o660)).unwrap();
    assert_eq!(status(&checks(root.path()), "/dev/kvm"), CheckStatus::Ok);
}

#[test]
fn a_host_that_tells_nothing_is_not_called_good() {
    let checks = checks(host(&[]).path());
    for name in ["processor flaws", "SMT", "kernel addresses", "kernel holes"] {
        assert_eq!(status(&checks, name), CheckStatus::Warn, "{name}");
    }
}

#[test]
fn releases_are_upstreams() {
    let debian = "Linux version 6.1.0-41-amd64 (a@b) (gcc-12 (Debian 12.2.0-14) 12.2.0) #1 SMP Debian 6.1.158-1 (2025)";
    assert_eq!(upstream(debian, ""), Some((6, 1, 158)));
    assert_eq!(
        upstream("Linux version 5.15.0-91-generic", "Ubuntu 5.15.0-91.101-generic 5.15.131"),
        Some((5, 15, 131))
    );
    assert_eq!(upstream("Linux version 6.18.44-fc (x)", ""), Some((6, 18, 44)));
    assert_eq!(upstream("Linux version 7.0-rc1 (x)", ""), Some((7, 0, 0)));
    assert_eq!(upstream("Linux version 5.14.0-70.el9.x86_64 (x)", ""), None);
    assert_eq!(upstream("", ""), None);
}

#[test]
fn holes_end_where_their_branch_was_mended() {
    let open = |release| HOLES.iter().filter(|hole| hole.is_in(release)).map(|hole| hole.name).collect::<Vec<_>>();
    assert_eq!(open((6, 6, 14)), ["CVE-2024-1086"]);
    assert_eq!(open((6, 6, 15)), Vec::<&str>::new());
    assert_eq!(open((6, 5, 200)), ["CVE-2024-1086"], "a branch that was left before");
    assert_eq!(open((5, 15, 0)).len(), HOLES.len());
    assert_eq!(open((6, 8, 0)).len() + open((7, 3, 1)).len(), 0);
    for hole in &HOLES {
        assert!(hole.mended.is_sorted_by(|a, b| a > b), "{}: newest first", hole.name);
    }
}

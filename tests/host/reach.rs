//! What arms of `compare` reach of the host, counted on real sandboxes.

use serde_json::{Value, json};

use crate::busybox;
use crate::life::Place;
use crate::runner::{Case, Need, Verdict, cases_with};
use crate::tarball::{Header, Tarball};

const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone];

cases_with!(
    "reach",
    place(),
    [
        calls_of_a_container_are_the_hosts_and_those_of_a_microvm_are_not,
        functions_of_the_kernel_are_counted,
        what_finds_no_room_is_counted_and_told
    ]
);

/// The program asks for its process's number so often (x86-64's system call 39).
const CALLS: u64 = 100_000;

fn calls_of_a_container_are_the_hosts_and_those_of_a_microvm_are_not(place: &Place) {
    let rounds = ["--runs", "1", "--warmup", "0", "--memory-runs", "0", "--format", "json"];
    let arms = ["--arm", "process", "--arm", "container", "--arm", "container-hardened", "--arm", "microvm,cold"];
    let text = place.say(&[&["compare", "--reach", "--workload", "syscall"][..], &rounds, &arms].concat());
    let record: Value = serde_json::from_str(&text).unwrap();
    let reach = |arm: usize| &record["arms"][arm]["reach"];
    let asked = |arm: usize| reach(arm)["system_calls"]["by_kind"]["39"].as_u64().unwrap_or(0);
    for arm in 0..4 {
        assert_eq!(reach(arm)["not_measured"], Value::Null, "{record}");
    }
    for arm in 0..3 {
        assert!((CALLS..CALLS + 1000).contains(&asked(arm)), "{}", reach(arm));
        assert_eq!(reach(arm)["vm_exits"], Value::Null, "there is no virtual machine");
    }
    assert!(asked(3) < 1000, "{}", reach(3));
    assert!(reach(3)["system_calls"]["total"].as_u64().unwrap() > 10);
    let exits = &reach(3)["vm_exits"];
    assert!(
        exits["total"].as_u64().unwrap() > 100 && exits["by_kind"]["nested page fault"].as_u64() > Some(0),
        "{exits}"
    );
    // Whoever has the host's /dev may write to it.
    let paths = |arm: usize| reach(arm)["writable_host_paths"].as_array().unwrap().clone();
    assert!(["/dev", "/proc", "/sys"].iter().all(|path| paths(0).iter().any(|p| p == path)), "{:?}", paths(0));
    assert!((1..4).all(|arm| paths(arm).is_empty()), "{record}");
    let gain = |arm: usize| {
        let gain = &reach(arm)["set_user_id"];
        (gain["becomes_root"] == true, gain["capabilities"].as_u64().unwrap(), gain["of_host"] == true)
    };
    assert_eq!([gain(1), gain(2)], [(true, 14, false), (false, 0, false)]);
    assert!(gain(0).0 && gain(0).1 > 30 && gain(0).2 && !gain(3).2, "{:?} {:?}", gain(0), gain(3));
    place.until_clean();
}

/// What writes is in the kernel's function for that; in a machine that is its own kernel's, and its host runs KVM's.
fn functions_of_the_kernel_are_counted(place: &Place) {
    let rounds = ["--runs", "1", "--warmup", "0", "--memory-runs", "0", "--format", "json"];
    let arms = ["--arm", "process", "--arm", "container", "--arm", "microvm"];
    let text =
        place.say(&[&["compare", "--reach-functions"][..], &rounds, &arms, &["workloads", "--", "hello"]].concat());
    let record: Value = serde_json::from_str(&text).unwrap();
    let functions = |arm: usize| &record["arms"][arm]["reach"]["kernel_functions"];
    let times = |arm: usize, name: &str| functions(arm)["by_kind"][name].as_u64().unwrap_or(0);
    for arm in 0..3 {
        assert_eq!(record["arms"][arm]["reach"]["not_measured"], Value::Null);
        assert!((300..8000).contains(&functions(arm)["distinct"].as_u64().unwrap()), "{}", functions(arm)["distinct"]);
        assert!(times(arm, "do_syscall_64") + times(arm, "__x64_sys_exit_group") > 0, "{arm}");
    }
    let runs = |arm: usize| times(arm, "kvm_arch_vcpu_ioctl_run");
    assert!(runs(2) > 0 && (0..2).all(|arm| runs(arm) == 0), "{:?}", [0, 1, 2].map(runs));
    place.until_clean();
}

/// Numbers that no system call has, from this one on, and how many of them: more than there is room for.
const FIRST: u32 = 4096;
const MADE_UP: u32 = 40_000;

/// An x86-64 program that makes a system call of each of them and ends.
fn caller() -> Vec<u8> {
    const AT: u64 = 4 << 20;
    let mut code = vec![0xbb]; // mov ebx, FIRST
    code.extend(FIRST.to_le_bytes());
    code.extend([0x89, 0xd8, 0x0f, 0x05, 0xff, 0xc3, 0x81, 0xfb]); // mov eax, ebx; syscall; inc ebx; cmp ebx,
    code.extend((FIRST + MADE_UP).to_le_bytes());
    // jb to the mov; xor edi, edi; mov eax, exit_group; syscall
    code.extend([0x72, 0xf2, 0x31, 0xff, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]);
    let mut elf = Vec::new();
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([2_u16, 62].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend(1_u32.to_le_bytes());
    elf.extend([AT + 120, 64, 0].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 64, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend([1_u32, 5].iter().flat_map(|v| v.to_le_bytes()));
    let size = 120 + code.len() as u64;
    elf.extend([0, AT, AT, size, size, 4096].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend(code);
    elf
}

/// A place with an image `caller` of that program.
fn place() -> Place {
    let mut place = Place::new();
    let program = caller();
    let mut layer = Tarball::default();
    layer.entry(Header::new(b'0', b"caller", program.len() as u64).octal(100, 8, 0o755), &program);
    let archive = place.folder().join("image.tar");
    std::fs::write(&archive, busybox::packed("caller", &json!({ "Cmd": ["/caller"] }), &layer.end())).unwrap();
    place.say(&["load", "-q", "-i", archive.to_str().unwrap()]);
    place.count();
    place
}

fn what_finds_no_room_is_counted_and_told(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    let [json, page] = ["result.json", "page.html"].map(|name| folder.path().join(name));
    let files = ["--json", json.to_str().unwrap(), "--report", page.to_str().unwrap()];
    let once = ["compare", "--reach", "--runs", "1", "--warmup", "0", "--memory-runs", "0"];
    let table = place.say(&[&once[..], &files, &["--arm", "process", "--arm", "container", "caller"]].concat());
    let record: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let process = &record["arms"][0]["reach"];
    let [total, distinct, unsorted] =
        ["total", "distinct", "unsorted"].map(|name| process["system_calls"][name].as_u64().unwrap());
    let made_up = u64::from(MADE_UP);
    assert!((made_up..made_up + 1000).contains(&total), "{process:.300}");
    assert!((1 << 14..=1 << 15).contains(&distinct) && unsorted == total - distinct, "{total} {distinct} {unsorted}");
    let words = format!("the kinds of {unsorted} system calls of the host: the table of 32768 kinds");
    assert_eq!(process["not_measured"].as_array().unwrap().len(), 1);
    assert!(process["not_measured"][0].as_str().unwrap().starts_with(&words), "{}", process["not_measured"]);
    let page = std::fs::read_to_string(page).unwrap();
    let one_line = table.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [one_line, page] {
        assert!(text.contains(&format!("Not measured of process: {words}")), "{text}");
    }
    assert!(table.contains(" of over 3"), "{table}");
    // The container's filter answers to such numbers before the kernel looks at them.
    let container = &record["arms"][1]["reach"];
    assert!(container["system_calls"]["total"].as_u64().unwrap() < 1000, "{container}");
    assert_eq!(container["not_measured"], Value::Null);
    place.until_clean();
}

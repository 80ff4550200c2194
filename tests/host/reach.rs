//! What arms of `compare` reach of the host, counted on real sandboxes.

use serde_json::Value;

use crate::life::Place;
use crate::runner::{Case, Need, Verdict, cases_with};

const NEEDS: &[Need] = &[Need::Host, Need::Root, Need::Kvm, Need::CgroupV2, Need::Alone];

cases_with!("reach", Place::new(), [calls_of_a_container_are_the_hosts_and_those_of_a_microvm_are_not]);

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
    assert_eq!([gain(1), gain(2)], [(true, 14, true), (false, 0, true)]);
    assert!(gain(0).0 && gain(0).1 > 30 && gain(0).2 && !gain(3).2, "{:?} {:?}", gain(0), gain(3));
    place.until_clean();
}

use super::*;
use crate::compare::drive::tests::{plan, recorded};
use crate::spec::MemorySize;

fn fate(against: &Against, arm: &str, figure: &str) -> Option<Fate> {
    against.changes.iter().find(|c| c.arm == arm && c.figure == figure).map(|c| c.fate)
}

/// All times of an arm so many times as long.
fn slowed(mut record: Record, arm: usize, factor: f64) -> Record {
    for run in &mut record.arms[arm].runs {
        run.total_ms *= factor;
        run.first_byte_ms = run.first_byte_ms.map(|ms| ms * factor);
    }
    record
}

fn on_hardware(mut record: Record) -> Record {
    record.host.lab = false;
    record
}

#[test]
fn a_result_beside_itself_holds() {
    for record in [recorded(), on_hardware(recorded())] {
        let against = against(&record, &record, 0.1);
        assert!(!against.changes.is_empty() && against.unequal.is_empty());
        assert!(against.changes.iter().all(|c| c.fate == Fate::Held), "{:?}", against.changes);
    }
}

#[test]
fn an_arm_that_got_slower_by_more_than_is_allowed_regressed() {
    let record = on_hardware(recorded());
    let slower = slowed(record.clone(), 1, 1.15);
    let found = against(&slower, &record, 0.1);
    assert_eq!(fate(&found, "microvm", "first_byte_ms"), Some(Fate::Regressed));
    assert_eq!(fate(&found, "container", "first_byte_ms"), Some(Fate::Held));
    assert_eq!(fate(&against(&slower, &record, 0.2), "microvm", "total_ms"), Some(Fate::Held));
    assert_eq!(fate(&against(&record, &slower, 0.1), "microvm", "total_ms"), Some(Fate::Held), "faster is no fault");
}

#[test]
fn in_the_lab_a_slow_day_is_no_regression_but_a_slower_arm_is() {
    let record = recorded();
    let slow_day = slowed(slowed(record.clone(), 0, 2.0), 1, 2.0);
    let found = against(&slow_day, &record, 0.1);
    assert_eq!(found.relative_to.as_deref(), Some("container"));
    assert_eq!(fate(&found, "microvm", "first_byte_ms"), Some(Fate::Held));
    assert_eq!(fate(&found, "container", "first_byte_ms"), None);
    let slower = against(&slowed(slow_day, 1, 1.3), &record, 0.1);
    assert_eq!(fate(&slower, "microvm", "first_byte_ms"), Some(Fate::Regressed));
    assert_eq!(slower.regressed().count(), 2);
}

#[test]
fn sizes_count_too_and_few_samples_tell_nothing() {
    let record = recorded();
    let mut larger = record.clone();
    for run in &mut larger.arms[1].memory_runs {
        run.memory_bytes.entry("idle".to_owned()).and_modify(|bytes| *bytes = *bytes * 5 / 4);
    }
    larger.arms[1].disk_bytes.insert("kernel".to_owned(), 80 << 20);
    larger.arms[1].summarize();
    let found = against(&larger, &record, 0.1);
    assert_eq!(fate(&found, "microvm", "memory_bytes.idle"), Some(Fate::Regressed));
    assert_eq!(fate(&found, "microvm", "disk_bytes"), Some(Fate::Regressed));
    assert_eq!(fate(&found, "microvm", "memory_bytes.peak"), Some(Fate::Held));
    larger.arms[1].runs.truncate(4);
    larger.arms[1].memory_runs.truncate(2);
    let found = against(&larger, &record, 0.1);
    assert_eq!(fate(&found, "microvm", "memory_bytes.idle"), Some(Fate::CannotTell));
    assert_eq!(fate(&found, "microvm", "total_ms"), Some(Fate::CannotTell));
}

#[test]
fn noise_in_which_a_regression_could_hide_is_no_verdict() {
    let mut noisy = on_hardware(recorded());
    let record = noisy.clone();
    for run in &mut noisy.arms[1].runs {
        run.total_ms *= if run.round % 2 == 0 { 0.7 } else { 1.4 };
    }
    assert_eq!(fate(&against(&noisy, &record, 0.1), "microvm", "total_ms"), Some(Fate::CannotTell));
}

#[test]
fn what_is_no_baseline_of_this_is_refused_by_name() {
    let golden = include_bytes!("../../../tests/golden/compare.v1.json");
    let record = read(golden).unwrap();
    assert_eq!(record.schema, SCHEMA_1, "what the layout before this one says is read");
    let spread = record.arms[0].summary.total_ms.unwrap();
    assert!(spread.p99 >= spread.p90 && spread.p90 >= spread.median, "{spread:?}");
    let text = String::from_utf8_lossy(golden).into_owned();
    let refused = |text: &str| read(text.as_bytes()).unwrap_err().to_string();
    assert!(refused(&text.replace(SCHEMA_1, "duplex.compare.v9")).contains("'duplex.compare.v9'"));
    assert!(refused(&text.replace("\"arms\"", "\"legs\"")).contains("does not have the layout"));
    assert!(refused("{}").contains("not a result") && refused("hello").contains("not a result"));

    let record = recorded();
    let words = |plan: &Plan, lab| fits(&record, plan, lab).map_or_else(|e| e.to_string(), |()| String::new());
    assert_eq!(words(&plan(), true), "");
    assert!(words(&plan(), false).contains("place is the lab"));
    let other = Plan { command: vec!["true".to_owned()], ..plan() };
    assert!(words(&other, true).contains("command is [\"hello\"], and here it is [\"true\"]"));
    let other = Plan { memory: MemorySize(1 << 30), ..plan() };
    assert!(words(&other, true).contains("memory limit"));
    let mut other = plan();
    other.arms[1].cold = true;
    assert!(words(&other, true).contains("arm of the same name"));
    let mut other = plan();
    other.arms.reverse();
    assert!(words(&other, true).contains("first arm is 'container'"));
}

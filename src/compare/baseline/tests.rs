use super::*;
use crate::compare::density::{Stopped, Sweep};
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

/// The record with the sweep of its second arm changed.
fn swept(mut record: Record, change: impl Fn(&mut Sweep)) -> Record {
    record.arms[1].density.as_mut().map(change).unwrap();
    record
}

#[test]
fn memory_of_idle_sandboxes_counts_and_how_many_there_were() {
    let record = recorded();
    let found = against(&record, &record, 0.1);
    for (figure, _) in density::FIGURES {
        assert_eq!(fate(&found, "microvm", figure), Some(Fate::Held), "{figure}");
        assert_eq!(fate(&found, "container", figure), Some(Fate::Held), "of the lab's first arm too: {figure}");
    }
    let heavier = swept(record.clone(), |sweep| {
        sweep.figures.first_bytes = sweep.figures.first_bytes.map(|bytes| bytes * 6 / 5);
        sweep.figures.further_bytes = sweep.figures.further_bytes.map(|bytes| bytes * 5 / 4);
    });
    let found = against(&heavier, &record, 0.1);
    assert_eq!(fate(&found, "microvm", "density.first_bytes"), Some(Fate::Regressed));
    assert_eq!(fate(&found, "microvm", "density.further_bytes"), Some(Fate::Regressed));
    assert_eq!(fate(&found, "microvm", "density.instances"), Some(Fate::Held));
    assert!(summary(&found).contains("memory of each further one of microvm (1.25 x)"), "{}", summary(&found));
    assert_eq!(against(&heavier, &record, 0.3).regressed().count(), 0, "more is allowed");
    assert_eq!(against(&record, &heavier, 0.1).regressed().count(), 0, "less is no fault");
}

#[test]
fn fewer_idle_sandboxes_are_worse_unless_the_host_had_less_to_give() {
    let record = recorded();
    let fewer = |stopped| {
        swept(record.clone(), |sweep| {
            sweep.steps.pop();
            sweep.stopped = stopped;
        })
    };
    let of = |now: &Record, then: &Record| {
        let found = against(now, then, 0.1);
        let change = found.changes.into_iter().find(|c| c.arm == "microvm" && c.figure == "density.instances").unwrap();
        (change.fate, change.ratio.ratio)
    };
    let (fate, ratio) = of(&fewer(Stopped::Start), &record);
    assert_eq!((fate, ratio < 0.9), (Fate::Regressed, true));
    assert_eq!(of(&record, &fewer(Stopped::Start)).0, Fate::Held, "more is no fault");
    assert_eq!(of(&fewer(Stopped::Reserve), &record).0, Fate::Regressed);
    let fuller = swept(fewer(Stopped::Reserve), |sweep| sweep.available_before_bytes = Some(1));
    assert_eq!(of(&fuller, &record).0, Fate::CannotTell);
    let none = swept(fewer(Stopped::Start), |sweep| sweep.steps.clear());
    assert_eq!(of(&none, &record), (Fate::Regressed, 0.0));
}

#[test]
fn what_only_one_of_two_results_has_of_idle_sandboxes_is_named() {
    let record = recorded();
    let said = |now: &Record, then: &Record| {
        let found = against(now, then, 0.1);
        let count = found.changes.iter().filter(|c| c.arm == "microvm" && c.figure.starts_with("density.")).count();
        (found.unequal.join(" "), count)
    };
    assert_eq!(said(&record, &record), (String::new(), 3));
    let mut without = record.clone();
    without.arms[1].density = None;
    let (words, count) = said(&without, &record);
    assert!(words.contains("Only the earlier result has idle sandboxes of microvm") && count == 0, "{words}");
    assert!(said(&record, &without).0.contains("Only the new result has"));
    let longer = swept(record.clone(), |sweep| sweep.most = 64);
    let (words, count) = said(&longer, &record);
    assert!(words.contains("had other limits: 3, a reserve") && words.contains("64, a reserve"), "{words}");
    assert_eq!(count, 2, "what each costs is compared, how many were reached is not");
    let silent = swept(record.clone(), |sweep| sweep.figures.further_bytes = None);
    let (words, count) = said(&silent, &record);
    assert!(words.contains("memory of each further one of microvm's idle") && count == 2, "{words}");
}

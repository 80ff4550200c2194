use super::*;
use crate::compare::runner::Look;

/// A crowd of made-up sandboxes on a host of 2 GiB: the first holds 20 MiB, each further one 10, and each takes 12 MiB of what is available.
pub(crate) struct Made {
    pub(crate) live: u32,
    pub(crate) fails_at: u32,
    pub(crate) silent_from: u32,
    pub(crate) ping: fn(u32) -> Duration,
    pub(crate) available: Option<u64>,
}

pub(crate) const HOST: u64 = 2 << 30;

impl Default for Made {
    fn default() -> Self {
        let ping = |live| Duration::from_millis(2 * u64::from(live));
        Self { live: 0, fails_at: u32::MAX, silent_from: u32::MAX, ping, available: Some(1 << 30) }
    }
}

impl Crowd for Made {
    fn add(&mut self) -> Result<(), RunnerError> {
        if self.live + 1 == self.fails_at {
            return Err(RunnerError::Failed { exit_code: 125, stderr: "Error: no\n  room".to_owned() });
        }
        self.live += 1;
        Ok(())
    }

    fn settle(&mut self) -> Result<Look, RunnerError> {
        let pss = (10 + 10 * u64::from(self.live)) * MIB;
        let memory = (self.live > 0).then_some(MemorySample { pss, tmpfs: None, kernel: None });
        Ok(Look { memory, available_bytes: self.available() })
    }

    fn available(&mut self) -> Option<u64> {
        Some(self.available?.saturating_sub(12 * MIB * u64::from(self.live)))
    }

    fn ping(&mut self) -> Result<Vec<Duration>, RunnerError> {
        if self.live >= self.silent_from {
            return Err(RunnerError::Silent { number: 1, seconds: 5 });
        }
        Ok((1..=self.live).map(self.ping).collect())
    }

    fn end(&mut self) -> u32 {
        std::mem::take(&mut self.live) / 100
    }
}

pub(crate) fn limits(most: u32) -> Density {
    Density { most, reserve_bytes: None, ping: Duration::from_secs(1) }
}

fn swept(limits: &Density, mut crowd: Made) -> Sweep {
    let mut seen = Vec::new();
    let sweep = sweep(limits, Some(HOST), &mut crowd, &mut |count| seen.push(count)).unwrap();
    assert!(seen.iter().zip(1..).all(|(seen, count)| *seen == count), "each is told of once: {seen:?}");
    sweep
}

fn counts(sweep: &Sweep) -> Vec<u32> {
    sweep.steps.iter().map(|step| step.instances).collect()
}

#[test]
fn it_looks_at_powers_of_two_and_at_the_last() {
    let sweep = swept(&limits(11), Made::default());
    assert_eq!((counts(&sweep), sweep.stopped), (vec![1, 2, 4, 8, 11], Stopped::Most));
    assert_eq!(counts(&swept(&limits(1), Made::default())), [1]);
    assert_eq!(counts(&swept(&limits(4), Made::default())), [1, 2, 4]);
    let last = sweep.steps.last().unwrap();
    assert_eq!((last.pings_ms.len(), last.ping_median_ms, last.ping_worst_ms), (11, Some(12.0), Some(22.0)));
    assert_eq!(last.memory_bytes, Some(120 * MIB));
}

#[test]
fn the_first_and_each_further_one_are_told_apart() {
    let figures = swept(&limits(11), Made::default()).figures;
    let room = (1 << 30) - 256 * MIB - 20 * MIB;
    let expected = Figures {
        first_bytes: Some(20 * MIB),
        further_bytes: Some(10 << 20),
        available_each_bytes: Some(12 << 20),
        available_further_bytes: Some(12 << 20),
        would_hold: Some(1 + room / (12 * MIB)),
    };
    assert_eq!(figures, expected);
    let alone = swept(&limits(1), Made::default()).figures;
    assert_eq!((alone.first_bytes, alone.further_bytes, alone.would_hold), (Some(20 * MIB), None, None));
}

#[test]
fn a_host_that_moves_makes_no_nonsense() {
    let step = |instances, memory, available| Crowded {
        instances,
        memory_bytes: memory,
        memory_parts: None,
        available_bytes: available,
        ping_median_ms: None,
        ping_worst_ms: None,
        pings_ms: Vec::new(),
    };
    // Somebody else gave memory back meanwhile.
    let steps = [step(1, Some(9), Some(1000)), step(5, Some(9), Some(3000))];
    let figures = Figures::of(Some(900), 0, &steps);
    assert_eq!((figures.available_each_bytes, figures.further_each()), (Some(-420), Some(0)));
    assert_eq!(figures.would_hold, None, "what costs nothing says nothing about how many fit");
    // More lived than the figures would allow.
    let steps = [step(1, Some(900), Some(100)), step(5, Some(1300), Some(60))];
    assert_eq!(Figures::of(Some(1000), 0, &steps).would_hold, Some(5));
    let steps = [step(1, Some(u64::MAX), Some(0)), step(u32::MAX, Some(0), Some(u64::MAX))];
    assert_eq!(Figures::of(Some(u64::MAX), u64::MAX, &steps).would_hold, None);
    assert_eq!(Figures::of(Some(1), 0, &[step(1, None, Some(1)), step(2, None, Some(0))]).would_hold, None);
    assert_eq!(Figures::of(None, 0, &[]), Figures::default());
}

#[test]
fn the_reserve_is_a_tenth_of_the_host_and_never_little() {
    assert_eq!(limits(1).reserve(Some(100 << 30)), 10 << 30);
    assert_eq!(limits(1).reserve(Some(1 << 30)), 256 << 20);
    assert_eq!(limits(1).reserve(None), 256 << 20);
    assert_eq!(Density { reserve_bytes: Some(7), ..limits(1) }.reserve(Some(1 << 40)), 7);
}

#[test]
fn it_stops_above_the_reserve_and_looks_at_what_lives_then() {
    // 1024 MiB less 12 for each is below 900 with 11.
    let sweep = swept(&Density { reserve_bytes: Some(900 * MIB), ..limits(64) }, Made::default());
    assert_eq!((counts(&sweep), sweep.stopped), (vec![1, 2, 4, 8, 11], Stopped::Reserve));
    let unknown = swept(&limits(64), Made { available: None, ..Made::default() });
    assert_eq!((counts(&unknown), unknown.stopped), (Vec::new(), Stopped::Reserve), "what cannot be read is not there");
}

#[test]
fn it_stops_at_a_slow_answer() {
    let limits = Density { ping: Duration::from_millis(15), ..limits(64) };
    let sweep = swept(&limits, Made::default());
    assert_eq!((counts(&sweep), sweep.stopped), (vec![1, 2, 4, 8], Stopped::Ping));
    assert_eq!((sweep.steps[3].ping_worst_ms, sweep.ping_limit_ms), (Some(16.0), 15.0));
}

#[test]
fn one_that_does_not_start_or_answer_is_a_finding() {
    let sweep = swept(&limits(64), Made { fails_at: 4, ..Made::default() });
    assert_eq!((counts(&sweep), sweep.stopped), (vec![1, 2, 3], Stopped::Start));
    assert!(sweep.words.unwrap().ends_with("exit code 125: Error: no room"));
    let none = swept(&limits(64), Made { fails_at: 1, ..Made::default() });
    assert_eq!((counts(&none), none.stopped, none.figures), (Vec::new(), Stopped::Start, Figures::default()));
    let silent = swept(&limits(64), Made { silent_from: 4, ..Made::default() });
    assert_eq!((counts(&silent), silent.stopped), (vec![1, 2, 4], Stopped::Silent));
    assert!(silent.words.unwrap().contains("Idle sandbox 1") && silent.steps[2].pings_ms.is_empty());
    assert!(silent.steps[2].memory_bytes.is_some(), "what was seen before it is kept");
    let both = swept(&limits(64), Made { fails_at: 4, silent_from: 3, ..Made::default() });
    assert_eq!(both.stopped, Stopped::Start);
    assert!(both.words.unwrap().contains("no room"), "the first that went wrong is told");
}

#[test]
fn who_asks_for_the_end_gets_it() {
    struct Interrupted;
    impl Crowd for Interrupted {
        fn add(&mut self) -> Result<(), RunnerError> {
            Err(RunnerError::Interrupted)
        }
        fn settle(&mut self) -> Result<Look, RunnerError> {
            Ok(Look { memory: None, available_bytes: Some(HOST) })
        }
        fn available(&mut self) -> Option<u64> {
            Some(HOST)
        }
        fn ping(&mut self) -> Result<Vec<Duration>, RunnerError> {
            Ok(Vec::new())
        }
        fn end(&mut self) -> u32 {
            0
        }
    }
    let result = sweep(&limits(3), Some(HOST), &mut Interrupted, &mut |_| {});
    assert!(matches!(result, Err(RunnerError::Interrupted)));
}

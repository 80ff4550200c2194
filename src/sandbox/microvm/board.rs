//! Where the thread that hears agent and monitor meets those who wait for their answers. What the agent says about sessions and questions is
//! checked against what was asked: a number that was never given out, or a word out of turn, is a broken protocol.
//!
//! ```text
//!        open()          Opened                 Closed
//! (none) -------> Asked --------> Open --------------------> Over --take--> (none)
//!                   \-- Refused --> Over      the machine's end: all are over
//! ```

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duplex_wire::{Answer, Ending, FailureKind, ToHost, port};

use crate::sandbox::agent::AgentError;
use crate::sandbox::inside::Refusal;

/// Most sessions at once: three streams each, of the 64 that the monitor serves, leave room for the command's own and for some that close.
pub(super) const MOST_SESSIONS: usize = 16;

/// Most questions without an answer.
const MOST_QUESTIONS: usize = 16;

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The agent was told.
    Asked,
    /// It runs.
    Open,
    /// It was not opened, or has ended.
    Over(Over),
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// It was never opened.
    Refused(FailureKind, String),
    /// Its process ended.
    Closed(Ending),
    /// The machine ended around it.
    Gone,
}

/// What is known and waited for.
#[derive(Debug, Default)]
pub(super) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    life: Life,
    paused: bool,
    /// What the monitor has told of the last time that it wrote the machine.
    saved: Option<Vec<String>>,
    next_session: u32,
    next_question: u32,
    /// With the owner's interest: a session that nobody waits for is forgotten at its end.
    sessions: BTreeMap<u32, (Stage, bool)>,
    questions: BTreeMap<u32, Option<Result<Answer, String>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Before,
    Running,
    Gone,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes who waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_all();
        changed
    }

    /// Waits until `look` sees something, at most until the deadline.
    fn wait<T>(&self, deadline: Option<Instant>, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(seen) = look(&mut state) {
                return Some(seen);
            }
            state = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return None,
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// The command runs.
    pub(super) fn begin(&self) {
        self.change(|state| state.life = Life::Running);
    }

    /// The machine is gone, or nobody hears it any more.
    pub(super) fn end(&self) {
        self.change(|state| {
            state.life = Life::Gone;
            state.paused = false;
            for (stage, _) in state.sessions.values_mut() {
                if !matches!(stage, Stage::Over(_)) {
                    *stage = Stage::Over(Over::Gone);
                }
            }
        });
    }

    /// The monitor has told that the processors are out, or in again.
    pub(super) fn set_paused(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    /// The processors are out.
    pub(super) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Waits until the monitor has told so. False if it does not.
    pub(super) fn wait_paused(&self, paused: bool, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.wait(Some(deadline), |s| (s.paused == paused || s.life == Life::Gone).then_some(s.paused == paused))
            .unwrap_or(false)
    }

    /// The monitor is about to be asked to write the machine.
    pub(super) fn expect_saved(&self) {
        self.change(|state| state.saved = None);
    }

    /// The monitor has written the machine, or tells why not.
    pub(super) fn set_saved(&self, causes: Vec<String>) {
        self.change(|state| state.saved = Some(causes));
    }

    /// Waits until it has told so. `None` if it does not in time, or is gone.
    pub(super) fn wait_saved(&self, patience: Duration) -> Option<Vec<String>> {
        let told = |state: &mut State| match state.saved.take() {
            Some(causes) => Some(Some(causes)),
            None if state.life == Life::Gone => Some(None),
            None => None,
        };
        self.wait(Some(Instant::now() + patience), told).flatten()
    }

    /// That it runs, paused or not.
    pub(super) fn running(&self) -> Result<bool, Refusal> {
        let state = self.lock();
        if state.life == Life::Running { Ok(state.paused) } else { Err(Refusal::NotRunning) }
    }

    /// That it can be asked.
    pub(super) fn answering(&self) -> Result<(), Refusal> {
        if self.running()? { Err(Refusal::Paused) } else { Ok(()) }
    }

    /// A number for a session that is about to be asked for.
    pub(super) fn open(&self) -> Result<u32, Refusal> {
        self.answering()?;
        self.change(|state| {
            let live = state.sessions.values().filter(|(stage, _)| !matches!(stage, Stage::Over(_))).count();
            if live >= MOST_SESSIONS || state.next_session > port::LAST_SESSION {
                return Err(Refusal::TooMany(MOST_SESSIONS));
            }
            let session = state.next_session;
            state.next_session += 1;
            state.sessions.insert(session, (Stage::Asked, true));
            Ok(session)
        })
    }

    /// Waits until it is opened or over. `None` if neither comes in time.
    pub(super) fn wait_opened(&self, session: u32, patience: Duration) -> Option<Stage> {
        let opened = |state: &mut State| match state.sessions.get(&session) {
            Some((Stage::Asked, _)) => None,
            Some((stage, _)) => Some(stage.clone()),
            None => Some(Stage::Over(Over::Gone)),
        };
        self.wait(Some(Instant::now() + patience), opened)
    }

    /// How it ended, if it has.
    pub(super) fn over(&self, session: u32) -> Option<Over> {
        match self.lock().sessions.get(&session) {
            Some((Stage::Over(over), _)) => Some(over.clone()),
            Some(_) => None,
            None => Some(Over::Gone),
        }
    }

    /// Waits until it is over.
    pub(super) fn wait_over(&self, session: u32) -> Over {
        let over = |state: &mut State| match state.sessions.get(&session) {
            Some((Stage::Over(over), _)) => Some(over.clone()),
            Some(_) => None,
            None => Some(Over::Gone),
        };
        self.wait(None, over).unwrap_or(Over::Gone)
    }

    /// Nobody waits for it any more. True if it may still run.
    pub(super) fn leave(&self, session: u32) -> bool {
        self.change(|state| match state.sessions.get_mut(&session) {
            Some((Stage::Over(_), _)) => {
                state.sessions.remove(&session);
                false
            }
            Some((_, wanted)) => {
                *wanted = false;
                true
            }
            None => false,
        })
    }

    /// A number for a question that is about to be asked.
    pub(super) fn ask(&self) -> Result<u32, Refusal> {
        self.answering()?;
        self.change(|state| {
            let number = state.next_question;
            match number.checked_add(1) {
                Some(next) if state.questions.len() < MOST_QUESTIONS => {
                    state.next_question = next;
                    state.questions.insert(number, None);
                    Ok(number)
                }
                _ => Err(Refusal::TooMany(MOST_QUESTIONS)),
            }
        })
    }

    /// Waits for its answer, and forgets the question. `None` if none comes in time.
    pub(super) fn wait_answer(&self, number: u32, patience: Duration) -> Option<Result<Answer, String>> {
        let answer = |state: &mut State| match state.questions.get_mut(&number) {
            Some(Some(_)) => state.questions.remove(&number).map(Option::Some),
            _ if state.life == Life::Gone => Some(None),
            _ => None,
        };
        // A late answer finds its question: it stays on the list until then.
        self.wait(Some(Instant::now() + patience), answer).flatten().flatten()
    }

    /// Takes in what the agent says about sessions and questions. True if the message is of that kind.
    ///
    /// # Errors
    /// [`AgentError::Unasked`]: the sandbox is to be ended.
    pub(super) fn take_in(&self, message: &ToHost) -> Result<bool, AgentError> {
        let (session, stage) = match message {
            ToHost::Opened { session } => (*session, Stage::Open),
            ToHost::Refused { session, kind, text } => (*session, Stage::Over(Over::Refused(*kind, text.clone()))),
            ToHost::Closed { session, ending } => (*session, Stage::Over(Over::Closed(*ending))),
            ToHost::Answer { number, answer } => {
                return self.change(|state| match state.questions.get_mut(number) {
                    Some(place @ None) => {
                        *place = Some(answer.clone());
                        Ok(true)
                    }
                    _ => Err(AgentError::Unasked("answer")),
                });
            }
            _ => return Ok(false),
        };
        self.change(|state| {
            let Some((now, wanted)) = state.sessions.get_mut(&session) else {
                return Err(AgentError::Unasked("word about a session"));
            };
            match (&*now, &stage) {
                (Stage::Asked, Stage::Open | Stage::Over(Over::Refused(..)))
                | (Stage::Open, Stage::Over(Over::Closed(_))) => *now = stage,
                _ => return Err(AgentError::Unasked("word about a session, out of its turn")),
            }
            if matches!(now, Stage::Over(_)) && !*wanted {
                state.sessions.remove(&session);
            }
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn running() -> Board {
        let board = Board::default();
        board.begin();
        board
    }

    #[test]
    fn a_session_goes_through_its_stages() {
        let board = running();
        let session = board.open().unwrap();
        assert_eq!(board.wait_opened(session, NOW), None);
        assert!(board.take_in(&ToHost::Closed { session, ending: Ending::Code(0) }).is_err(), "not opened yet");
        assert!(board.take_in(&ToHost::Opened { session }).unwrap());
        assert_eq!(board.wait_opened(session, NOW), Some(Stage::Open));
        assert!(board.take_in(&ToHost::Opened { session }).is_err(), "opened already");
        board.take_in(&ToHost::Closed { session, ending: Ending::Code(7) }).unwrap();
        assert_eq!(board.wait_over(session), Over::Closed(Ending::Code(7)));
        assert!(!board.leave(session));
        assert!(board.take_in(&ToHost::Closed { session, ending: Ending::Code(7) }).is_err(), "forgotten");
        assert!(board.take_in(&ToHost::Opened { session: 99 }).is_err(), "never asked for");
        assert!(!board.take_in(&ToHost::Started).unwrap());
    }

    #[test]
    fn an_abandoned_session_is_forgotten_at_its_end() {
        let board = running();
        let session = board.open().unwrap();
        assert!(board.leave(session));
        board.take_in(&ToHost::Opened { session }).unwrap();
        board.take_in(&ToHost::Closed { session, ending: Ending::Signal(9) }).unwrap();
        assert!(board.lock().sessions.is_empty());
    }

    #[test]
    fn numbers_and_places_have_an_end() {
        let board = running();
        let all: Vec<u32> = (0..MOST_SESSIONS).map(|_| board.open().unwrap()).collect();
        assert_eq!(board.open(), Err(Refusal::TooMany(MOST_SESSIONS)));
        board.take_in(&ToHost::Refused { session: all[3], kind: FailureKind::Other, text: String::new() }).unwrap();
        assert!(!all.contains(&board.open().unwrap()), "no number is given out twice");
        board.lock().next_session = port::LAST_SESSION + 1;
        assert!(board.open().is_err());
    }

    #[test]
    fn the_end_of_the_machine_is_the_end_of_all() {
        let board = running();
        let (session, question) = (board.open().unwrap(), board.ask().unwrap());
        board.end();
        assert_eq!(board.wait_over(session), Over::Gone);
        assert_eq!(board.wait_answer(question, Duration::from_secs(60)), None);
        assert_eq!(board.open(), Err(Refusal::NotRunning));
        assert_eq!(Board::default().open(), Err(Refusal::NotRunning));
    }

    #[test]
    fn nobody_is_asked_while_paused() {
        let board = running();
        board.set_paused(true);
        assert_eq!(board.open(), Err(Refusal::Paused));
        assert_eq!(board.ask(), Err(Refusal::Paused));
        assert!(board.wait_paused(true, NOW));
        assert!(!board.wait_paused(false, NOW));
    }

    #[test]
    fn answers_come_once_and_may_come_late() {
        let board = running();
        let number = board.ask().unwrap();
        assert_eq!(board.wait_answer(number, NOW), None);
        let answer = ToHost::Answer { number, answer: Err("no".into()) };
        assert!(board.take_in(&answer).unwrap());
        assert!(board.take_in(&answer).is_err());
        assert_eq!(board.wait_answer(number, NOW), Some(Err("no".into())));
        assert!(board.take_in(&answer).is_err(), "the question is gone");
    }

    proptest! {
        /// Whatever the agent says, it moves no session but the one it names, and never backwards.
        #[test]
        fn a_hostile_agent_moves_only_what_it_names(words in proptest::collection::vec((0_u32..6, 0_u8..4), 0..60)) {
            let board = running();
            let asked: Vec<u32> = (0..4).map(|_| board.open().unwrap()).collect();
            let rank = |stage: Option<&(Stage, bool)>| match stage {
                Some((Stage::Asked, _)) => 0,
                Some((Stage::Open, _)) => 1,
                Some((Stage::Over(_), _)) => 2,
                None => 3,
            };
            let ranks = || asked.iter().map(|s| rank(board.lock().sessions.get(s))).collect::<Vec<_>>();
            for (session, word) in words {
                let before = ranks();
                let message = match word {
                    0 => ToHost::Opened { session },
                    1 => ToHost::Closed { session, ending: Ending::Code(0) },
                    2 => ToHost::Refused { session, kind: FailureKind::Other, text: String::new() },
                    _ => ToHost::Answer { number: session, answer: Err(String::new()) },
                };
                let taken = board.take_in(&message).is_ok();
                for (at, (before, after)) in before.iter().zip(ranks()).enumerate() {
                    let named = usize::try_from(session).unwrap() == at;
                    prop_assert!(after >= *before);
                    prop_assert!(after == *before || (named && taken));
                }
            }
        }
    }
}

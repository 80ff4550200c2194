//! The life of a sandbox, whoever makes it.

use duplex::spec::{Exit, Moment, State};

use super::stage::{Stage, feed};
use crate::runner::Verdict;

pub(crate) fn states_follow_the_picture(stage: &Stage) -> Verdict {
    let mut spec = stage.spec(&["sleep", "600"]);
    let mut running = stage.create(&spec);
    assert_eq!(running.sandbox.state(), State::Created);
    assert_eq!(running.sandbox.id(), &spec.id);
    assert!(running.sandbox.wait().is_err(), "nobody waits for what was not started");
    running.sandbox.start().unwrap();
    assert_eq!(running.sandbox.state(), State::Running);
    assert!(running.sandbox.start().is_err(), "a sandbox starts once");
    let moments = running.sandbox.moments();
    assert!(moments.at(Moment::MachineReady) <= moments.at(Moment::Started), "{moments:?}");
    running.sandbox.remote().signal(9).unwrap();
    assert_eq!(running.sandbox.wait().unwrap().exit, Exit::Signal(9));
    assert_eq!(running.sandbox.state(), State::Exited);
    assert_eq!(running.sandbox.wait().unwrap().exit, Exit::Signal(9), "asked again, it says the same");
    assert!(running.sandbox.moments().at(Moment::Exited) >= moments.at(Moment::Started));
    running.sandbox.remote().signal(9).unwrap();
    running.sandbox.remove().unwrap();
    spec = stage.spec(&["true"]);
    stage.create(&spec).sandbox.remove().unwrap();
    Ok(())
}

pub(crate) fn plain_commands_end_as_they_do(stage: &Stage) -> Verdict {
    assert_eq!(stage.run(&stage.spec(&["true"])).outcome.exit, Exit::Code(0));
    assert_eq!(stage.run(&stage.spec(&["false"])).outcome.exit, Exit::Code(1));
    assert_eq!(stage.run(&stage.spec(&["echo", "a", "b  c"])).good(), "a b  c\n");
    assert_eq!(stage.run(&stage.spec(&["no-such-program"])).outcome.exit, Exit::NotFound);
    let mut spec = stage.spec(&["cat"]);
    spec.process.stdin = true;
    let mut running = stage.start(&spec);
    feed(running.stdin.take().unwrap(), b"through".to_vec()).join().unwrap();
    assert_eq!(running.finish().good(), "through");
    Ok(())
}

/// Two with one image at once do not see each other.
pub(crate) fn neighbours_are_apart(stage: &Stage) -> Verdict {
    let first = stage.start(&stage.spec(&["sleep", "600"]));
    let second = stage.start(&stage.spec(&["sleep", "600"]));
    first.sandbox.remote().signal(9).unwrap();
    assert_eq!(first.finish().outcome.exit, Exit::Signal(9));
    assert_eq!(second.sandbox.state(), State::Running);
    second.sandbox.remote().signal(9).unwrap();
    assert_eq!(second.finish().outcome.exit, Exit::Signal(9));
    Ok(())
}

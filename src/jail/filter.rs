//! A thread's list of system calls, and how it becomes its filter (seccomp(2)).

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Why a thread is not confined.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The list makes no program.
    #[error("The list of system calls cannot be compiled")]
    Compile(#[from] BackendError),
    /// The kernel does not take it.
    #[error("The kernel does not take the filter of system calls")]
    Install(#[from] seccompiler::Error),
}

/// What a call's arguments may be. All are compared as the 32-bit numbers that the kernel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Arguments {
    Any,
    /// The argument of this number is one of these.
    OneOf(u8, Vec<u32>),
    /// Each argument of these numbers is this.
    Exactly(Vec<(u8, u32)>),
}

/// System calls that a thread may make. Any other ends the process.
#[derive(Clone, Debug, Default)]
pub struct Filter(BTreeMap<c_long, Arguments>);

impl Filter {
    /// These calls, whatever their arguments.
    pub(super) fn calls(&mut self, numbers: &[c_long]) {
        self.0.extend(numbers.iter().map(|number| (*number, Arguments::Any)));
    }

    /// A call whose argument `argument`, from 0, is one of these numbers.
    pub(super) fn call_if(&mut self, number: c_long, argument: u8, allowed: Vec<u32>) {
        self.0.insert(number, Arguments::OneOf(argument, allowed));
    }

    /// A call with exactly these numbers in these arguments.
    pub(super) fn call_with(&mut self, number: c_long, arguments: Vec<(u8, u32)>) {
        self.0.insert(number, Arguments::Exactly(arguments));
    }

    /// The numbers of the calls.
    pub fn numbers(&self) -> impl Iterator<Item = c_long> {
        self.0.keys().copied()
    }

    /// The program for the kernel.
    ///
    /// # Errors
    /// [`FilterError::Compile`].
    pub fn compile(&self) -> Result<BpfProgram, FilterError> {
        let rules = self.0.iter().map(|(number, arguments)| Ok((*number, arguments.rules()?)));
        let rules = rules.collect::<Result<_, BackendError>>()?;
        let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
        Ok(filter.try_into()?)
    }

    /// Confines this thread, for ever.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn install(&self) -> Result<(), FilterError> {
        Ok(seccompiler::apply_filter(&self.compile()?)?)
    }
}

impl Arguments {
    /// A call is allowed by any of its rules, or always if it has none.
    fn rules(&self) -> Result<Vec<SeccompRule>, BackendError> {
        let condition = |argument: u8, number: u32| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number.into())
        };
        match self {
            Self::Any => Ok(Vec::new()),
            Self::OneOf(argument, numbers) => {
                numbers.iter().map(|number| SeccompRule::new(vec![condition(*argument, *number)?])).collect()
            }
            Self::Exactly(arguments) => {
                let conditions = arguments.iter().map(|(argument, number)| condition(*argument, *number));
                Ok(vec![SeccompRule::new(conditions.collect::<Result<_, _>>()?)?])
            }
        }
    }
}

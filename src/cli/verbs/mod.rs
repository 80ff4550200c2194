//! One file per verb.

pub(super) mod attach;
pub(super) mod compare;
pub(super) mod cp;
pub(super) mod doctor;
pub(super) mod exec;
pub(super) mod fork;
pub(super) mod images;
pub(super) mod inspect;
pub(super) mod lab;
pub(super) mod load;
pub(super) mod logs;
pub(super) mod port;
pub(super) mod ps;
pub(super) mod pull;
pub(super) mod rm;
pub(super) mod rmi;
pub(super) mod run;
pub(super) mod snapshot;
pub(super) mod start;
pub(super) mod stats;
pub(super) mod stop;
pub(super) mod top;
pub(super) mod update;
pub(super) mod volume;

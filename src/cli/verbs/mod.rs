//! One file per verb.

pub(super) mod compare;
pub(super) mod doctor;
pub(super) mod images;
pub(super) mod lab;
pub(super) mod load;
pub(super) mod pull;
pub(super) mod rmi;
pub(super) mod run;

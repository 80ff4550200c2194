//! One file per verb.

pub(super) mod images;
pub(super) mod rmi;

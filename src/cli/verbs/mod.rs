//! One file per verb.

pub(super) mod images;
pub(super) mod lab;
pub(super) mod rmi;

//! The emulated KVM host for machines without usable KVM.

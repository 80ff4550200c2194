//! `duplex-vmm N`: the monitor process of one microVM, whose spec is on descriptor N.

use duplex::vmm::role::EnterRole;

fn main() -> std::process::ExitCode {
    let argument = std::env::args().nth(1);
    // The jail is not here yet: threads enter their roles with all the rights that the caller left them.
    duplex::vmm::main(argument.as_deref(), &EnterRole::unconfined()).into()
}

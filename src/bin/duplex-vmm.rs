//! `duplex-vmm`: the monitor process of one microVM.

fn main() -> std::process::ExitCode {
    duplex::vmm::main()
}

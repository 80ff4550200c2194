//! `duplex-vmm N`: the monitor process of one microVM, whose spec is on descriptor N.

use duplex::jail;
use duplex::sys::runtime;

fn main() {
    let argument = std::env::args().nth(1);
    let exit = match jail::settle() {
        Ok(enter) => duplex::vmm::main(argument.as_deref(), &enter),
        Err(e) => {
            let words = format!("the kernel does not confine it: {e}");
            let _ = rustix::io::write(rustix::stdio::stderr(), words.as_bytes());
            duplex::vmm::MonitorExit::Unconfined
        }
    };
    runtime::end(exit as u8);
}

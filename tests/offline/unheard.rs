//! A failure whose words nobody reads is the same failure.

use std::process::{Command, Stdio};

#[test]
fn a_failure_that_nobody_hears_has_its_exit_code() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_duplex"));
    command.args(["compare", "--baseline", "/no/such/file"]).stdout(Stdio::null()).stderr(writer);
    assert_eq!(command.status().unwrap().code(), Some(1));
}

//! The sandbox's own loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Instant;

use crate::{Answer, measured, number, number_or};

/// A client and a server in one process bounce a message.
pub(crate) fn tcp_echo(args: &[String]) -> Answer {
    let count: u32 = number(args, 0, "COUNT")?;
    let bytes: usize = number_or(args, 1, "BYTES", 1)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || serve(&listener, bytes));
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    let (message, mut answer) = (vec![0x5a; bytes], vec![0; bytes]);
    let began = Instant::now();
    for _ in 0..count {
        client.write_all(&message)?;
        client.read_exact(&mut answer)?;
    }
    if count > 0 && answer != message {
        return Err("the answer is not the message".into());
    }
    println!("Echoed {bytes} bytes {count} times");
    measured("round trips", count.into(), began);
    drop(client);
    server.join().map_err(|_| "the server failed")??;
    Ok(ExitCode::SUCCESS)
}

fn serve(listener: &TcpListener, bytes: usize) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut message = vec![0; bytes];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        assert!(tcp_echo(&["10".into(), "1000".into()]).is_ok());
        assert!(tcp_echo(&[]).is_err());
    }
}

//! The sandbox's own loopback, and what is beyond.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
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

/// Sends everything back, to any number of peers, for ever.
pub(crate) fn serve_port(args: &[String]) -> Answer {
    let port: u16 = number(args, 0, "PORT")?;
    let (streams, datagrams) = match bind(Ipv6Addr::UNSPECIFIED.into(), port) {
        // A kernel without IPv6.
        Err(_) => bind(Ipv4Addr::UNSPECIFIED.into(), port)?,
        both => both?,
    };
    println!("Serving port {port}");
    std::thread::spawn(move || {
        let mut datagram = vec![0; 65_536];
        while let Ok((count, from)) = datagrams.recv_from(&mut datagram) {
            let _ = datagrams.send_to(datagram.get(..count).unwrap_or_default(), from);
        }
    });
    for stream in streams.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || {
            let copied = stream.try_clone().and_then(|mut from| std::io::copy(&mut from, &mut stream));
            copied.and_then(|_| stream.shutdown(std::net::Shutdown::Write))
        });
    }
    Ok(ExitCode::SUCCESS)
}

fn bind(address: IpAddr, port: u16) -> std::io::Result<(TcpListener, UdpSocket)> {
    Ok((TcpListener::bind((address, port))?, UdpSocket::bind((address, port))?))
}

/// One stream, as fast as it goes. Its end is not waited for: user-mode networks differ in what they make of a half-closed connection.
pub(crate) fn send(args: &[String]) -> Answer {
    let address: IpAddr = number(args, 0, "ADDRESS")?;
    let port: u16 = number(args, 1, "PORT")?;
    let mebibytes: u64 = number(args, 2, "MIB")?;
    let mut stream = TcpStream::connect(SocketAddr::new(address, port))?;
    let piece = vec![0x5a; 1 << 20];
    let began = Instant::now();
    for _ in 0..mebibytes {
        stream.write_all(&piece)?;
    }
    drop(stream);
    println!("Sent {mebibytes} MiB");
    measured("MiB", mebibytes, began);
    Ok(ExitCode::SUCCESS)
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

//! The programs, run as the kernel would on the instructions that they use.

use super::*;

/// A call to an address from a socket with this port.
struct Sock {
    to: IpAddr,
    port: u16,
    from: u16,
    /// The namespace that it is in.
    cookie: u64,
}

const HOST: u64 = 0x1_2345_6789_abcd;

impl Sock {
    /// A word of the context as a little-endian processor loads it.
    fn word(&self, offset: i16) -> u64 {
        let bytes: [u8; 4] = match (self.to, offset) {
            (IpAddr::V4(ip), IP4) => ip.octets(),
            (IpAddr::V6(ip), 8 | 12 | 16 | 20) => {
                let at = usize::try_from(offset - IP6).unwrap();
                ip.octets()[at..at + 4].try_into().unwrap()
            }
            (_, PORT) => [self.port.to_be_bytes()[0], self.port.to_be_bytes()[1], 0, 0],
            (to, offset) => panic!("the program for {to} reads {offset}"),
        };
        u32::from_le_bytes(bytes).into()
    }
}

fn verdict(program: &[Instruction], sock: &Sock) -> bool {
    let mut registers = [0_u64; 11];
    let mut at = 0;
    loop {
        let Instruction { code, registers: r, offset, immediate } = program[at];
        let (to, from) = (usize::from(r & 15), r >> 4);
        let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap();
        let immediate = u32::from_ne_bytes(immediate.to_ne_bytes());
        at += 1;
        let jump = match code {
            LOAD_WORD if from == 6 => {
                registers[to] = sock.word(offset);
                false
            }
            LOAD_WORD => {
                assert_eq!((from, offset), (3, SOURCE_PORT));
                registers[to] = sock.from.into();
                false
            }
            LOAD_DOUBLE => {
                assert_eq!(offset, SOCKET);
                registers[to] = 1;
                false
            }
            MOVE_REGISTER => {
                assert_eq!((to, from), (6, 1), "the context is kept");
                false
            }
            CALL => {
                registers[0] = sock.cookie;
                false
            }
            LOAD_IMMEDIATE => {
                registers[to] =
                    u64::from(immediate) | u64::from(u32::from_ne_bytes(program[at].immediate.to_ne_bytes())) << 32;
                at += 1;
                false
            }
            JUMP_IF_SAME => registers[to] == registers[usize::from(from)],
            MOVE => {
                registers[to] = immediate.into();
                false
            }
            AND32 => {
                registers[to] = (low(registers[to]) & immediate).into();
                false
            }
            TO_BIG_ENDIAN => {
                registers[to] = u16::try_from(registers[to] & 0xffff).unwrap().swap_bytes().into();
                false
            }
            JUMP_IF_ZERO => registers[to] == 0,
            JUMP32_IF_NOT => low(registers[to]) != immediate,
            JUMP32_IF_BELOW => low(registers[to]) < immediate,
            EXIT => return registers[0] == 1,
            other => panic!("instruction {other:#x}"),
        };
        if jump {
            at += usize::try_from(offset).unwrap();
        }
    }
}

fn passes(call: Call, open: &Openings, to: &str, port: u16, from: u16) -> bool {
    let to: IpAddr = to.parse().unwrap();
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    verdict(&program(HOST, family, call, open), &Sock { to, port, from, cookie: HOST })
}

const CLOSED: [&str; 14] = [
    "0.0.0.0",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "169.254.0.1",
    "100.100.100.200",
    "::",
    "::1",
    "fe80::1",
    "febf::1",
    "fd00:ec2::254",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
];
const OPEN: [&str; 12] = [
    "1.1.1.1",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.1.1",
    "169.255.1.1",
    "100.100.100.201",
    "10.0.2.2",
    "2001:db8::1",
    "fec0::1",
    "fd00:ec2::253",
    "::2",
    "::ffff:1.1.1.1",
];

#[test]
fn closed_blocks_are_closed_and_their_neighbours_open() {
    for call in [Call::Connect, Call::Send] {
        for address in CLOSED {
            assert!(!passes(call, &Openings::default(), address, 80, 40000), "{address}");
            assert!(is_closed(address.parse().unwrap()), "{address}");
        }
        for address in OPEN {
            assert!(passes(call, &Openings::default(), address, 80, 40000), "{address}");
            assert!(!is_closed(address.parse().unwrap()), "{address}");
        }
    }
}

#[test]
fn only_what_is_named_opens() {
    let service = |text: &str| Openings { services: vec![(text.parse().unwrap(), 53)], ..Openings::default() };
    assert!(passes(Call::Send, &service("169.254.169.254"), "169.254.169.254", 53, 1));
    assert!(!passes(Call::Send, &service("169.254.169.254"), "169.254.169.254", 80, 1));
    assert!(!passes(Call::Connect, &service("169.254.169.254"), "169.254.169.253", 53, 1));
    assert!(
        passes(Call::Connect, &service("::1"), "::1", 53, 1) && !passes(Call::Connect, &service("::1"), "::1", 54, 1)
    );
    let loopback = Openings { loopback: true, ..Openings::default() };
    for address in CLOSED {
        let opened = ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"].contains(&address);
        assert_eq!(passes(Call::Connect, &loopback, address, 22, 1), opened, "{address}");
    }
}

#[test]
fn the_hosts_own_clients_are_answered_from_published_ports_only() {
    let open = Openings { answering: vec![5353], ..Openings::default() };
    for address in ["127.0.0.1", "::1"] {
        assert!(passes(Call::Send, &open, address, 40000, 5353), "{address}");
        assert!(!passes(Call::Send, &open, address, 53, 5353), "{address}: a service");
        assert!(!passes(Call::Send, &open, address, 40000, 5354), "{address}: another port");
        assert!(!passes(Call::Connect, &open, address, 40000, 5353), "{address}: a connection");
    }
}

#[test]
fn another_namespace_is_not_ours_to_close() {
    for (family, to) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
        let program = program(HOST, family, Call::Connect, &Openings::default());
        let sock = |cookie| Sock { to: to.parse().unwrap(), port: 80, from: 1, cookie };
        assert!(verdict(&program, &sock(HOST ^ 1)) && verdict(&program, &sock(HOST ^ (1 << 40))));
        assert!(!verdict(&program, &sock(HOST)));
    }
}

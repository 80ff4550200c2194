//! Where the sockets of a cgroup's processes may not go: BPF programs of type BPF_PROG_TYPE_CGROUP_SOCK_ADDR, which see the address of every
//! `connect`, and of every datagram with an address of its own, whoever asked for it and however.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::bpf::{self, Hook, Instruction};

/// `BPF_CGROUP_INET4_CONNECT` and the others, all of BPF_PROG_TYPE_CGROUP_SOCK_ADDR.
const HOOKS: [(Family, Call, Hook); 4] = [
    (Family::V4, Call::Connect, Hook { program: 18, attach: 10 }),
    (Family::V6, Call::Connect, Hook { program: 18, attach: 11 }),
    (Family::V4, Call::Send, Hook { program: 18, attach: 14 }),
    (Family::V6, Call::Send, Hook { program: 18, attach: 15 }),
];

/// Fields of `struct bpf_sock_addr`, and of `struct bpf_sock` behind its `sk`.
const IP4: i16 = 4;
const IP6: i16 = 8;
const PORT: i16 = 24;
const SOCKET: i16 = 64;
const SOURCE_PORT: i16 = 44;

/// Clients' ports begin here: the kernel's default for `net.ipv4.ip_local_port_range`.
const FIRST_CLIENT_PORT: u16 = 32768;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Connect,
    Send,
}

/// What is open of what is closed by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Openings {
    /// The host's own loopback.
    pub loopback: bool,
    /// Single services: name servers at a closed address.
    pub services: Vec<(IpAddr, u16)>,
    /// UDP ports on which the host's own clients are answered: those that are published.
    pub answering: Vec<u16>,
}

/// Closes to the processes of this cgroup, in the network namespace of the caller, the host's loopback, link-local addresses (RFC 3927, RFC 4291) and the metadata services of
/// clouds, but for what is named open.
///
/// # Errors
/// `EPERM` without CAP_BPF and CAP_NET_ADMIN, `EINVAL` on a kernel without CONFIG_CGROUP_BPF.
pub fn close(cgroup: BorrowedFd<'_>, open: &Openings) -> io::Result<()> {
    let cookie = own_cookie()?;
    HOOKS.iter().try_for_each(|(family, call, hook)| bpf::attach(cgroup, *hook, &program(cookie, *family, *call, open)))
}

/// A condition of a rule; all of a rule's must hold.
#[derive(Clone, Copy, Debug)]
enum Condition {
    /// A word of the context, masked, is this one. Both in the order of the network's bytes.
    Word { offset: i16, mask: u32, value: u32 },
    /// The port that is called.
    Port(u16),
    /// The port that is called is not below this one.
    PortFrom(u16),
    /// The socket's own port.
    SourcePort(u16),
}

/// The closed IPv4 blocks: "this host", loopback, link-local with its metadata services, Alibaba's metadata service.
const CLOSED4: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    LOOPBACK4,
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
];
const LOOPBACK4: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);

/// The closed IPv6 blocks: unspecified, loopback, link-local, Amazon's metadata service.
const CLOSED6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::UNSPECIFIED, 128),
    LOOPBACK6,
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
];
const LOOPBACK6: (Ipv6Addr, u8) = (Ipv6Addr::LOCALHOST, 128);

/// Whether these rules close an address.
pub fn is_closed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => CLOSED4
            .iter()
            .any(|(block, prefix)| (u32::from(ip) ^ u32::from(*block)).leading_zeros() >= u32::from(*prefix)),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_closed(ip.into()),
            None => CLOSED6
                .iter()
                .any(|(block, prefix)| (u128::from(ip) ^ u128::from(*block)).leading_zeros() >= u32::from(*prefix)),
        },
    }
}

fn v4(offset: i16, (block, prefix): (Ipv4Addr, u8)) -> Condition {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Condition::Word { offset, mask, value: u32::from(block) & mask }
}

fn v6((block, prefix): (Ipv6Addr, u8)) -> Vec<Condition> {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    let word = |bits: u128, n: u32| u32::try_from((bits >> (96 - 32 * n)) & u128::from(u32::MAX)).unwrap_or(0);
    let of = |n: u32| Condition::Word {
        offset: IP6 + i16::try_from(4 * n).unwrap_or(0),
        mask: word(mask, n),
        value: word(u128::from(block) & mask, n),
    };
    (0..4).map(of).filter(|c| !matches!(c, Condition::Word { mask: 0, .. })).collect()
}

/// `::ffff:0:0/96`, whose last word is an IPv4 address.
fn mapped((block, prefix): (Ipv4Addr, u8)) -> Vec<Condition> {
    let mut conditions = v6((Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96));
    conditions.push(v4(IP6 + 12, (block, prefix)));
    conditions
}

/// The rules in order, each with its verdict; what none decides is allowed.
fn rules(family: Family, call: Call, open: &Openings) -> Vec<(Vec<Condition>, bool)> {
    let mut rules = Vec::new();
    let both = |conditions: Vec<Condition>, more: &[Condition]| [conditions, more.to_vec()].concat();
    for (address, port) in &open.services {
        let conditions = match (family, address) {
            (Family::V4, IpAddr::V4(ip)) => vec![v4(IP4, (*ip, 32))],
            (Family::V6, IpAddr::V6(ip)) => v6((*ip, 128)),
            _ => continue,
        };
        rules.push((both(conditions, &[Condition::Port(*port)]), true));
    }
    if call == Call::Send {
        for port in &open.answering {
            let loopback = if family == Family::V4 { vec![v4(IP4, LOOPBACK4)] } else { v6(LOOPBACK6) };
            let more = [Condition::SourcePort(*port), Condition::PortFrom(FIRST_CLIENT_PORT)];
            rules.push((both(loopback, &more), true));
        }
    }
    let closed4 = CLOSED4.iter().filter(|block| !(open.loopback && **block == LOOPBACK4));
    match family {
        Family::V4 => rules.extend(closed4.map(|block| (vec![v4(IP4, *block)], false))),
        Family::V6 => {
            let closed6 = CLOSED6.iter().filter(|block| !(open.loopback && **block == LOOPBACK6));
            rules.extend(closed6.map(|block| (v6(*block), false)));
            rules.extend(closed4.map(|block| (mapped(*block), false)));
        }
    }
    rules
}

/// `BPF_FUNC_get_netns_cookie` and `SO_NETNS_COOKIE`.
const GET_NETNS_COOKIE: i32 = 122;
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The kernel's name of the network namespace that this process is in.
fn own_cookie() -> io::Result<u64> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    let value = (&raw mut cookie).cast::<libc::c_void>();
    // SAFETY: SO_NETNS_COOKIE writes a u64, which `value` points to and which lives through the call, as `length` does.
    let done =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut length) };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

const LOAD_WORD: u8 = 0x61;
const LOAD_DOUBLE: u8 = 0x79;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const LOAD_IMMEDIATE: u8 = 0x18;
const CALL: u8 = 0x85;
const JUMP_IF_SAME: u8 = 0x1d;
const AND32: u8 = 0x54;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP_IF_ZERO: u8 = 0x15;
const JUMP32_IF_NOT: u8 = 0x56;
const JUMP32_IF_BELOW: u8 = 0xa6;
const EXIT: u8 = 0x95;

/// The program. Its context is in r6.
fn program(cookie: u64, family: Family, call: Call, open: &Openings) -> Vec<Instruction> {
    let op = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    let [a, b, c, d, e, f, g, h] = cookie.to_le_bytes();
    // In another namespace than the host's all is the container's own: pasta goes to its loopback for the host's loopback.
    let mut program = vec![
        op(MOVE_REGISTER, 0x16, 0, 0),
        op(CALL, 0, 0, GET_NETNS_COOKIE),
        op(LOAD_IMMEDIATE, 2, 0, i32::from_le_bytes([a, b, c, d])),
        op(0, 0, 0, i32::from_le_bytes([e, f, g, h])),
        op(JUMP_IF_SAME, 0x20, 2, 0),
        op(MOVE, 0, 0, 1),
        op(EXIT, 0, 0, 0),
    ];
    for (conditions, verdict) in rules(family, call, open) {
        let mut rule = Vec::new();
        // Jumps out of a rule whose condition does not hold; their distance is known when the rule is whole.
        for condition in conditions {
            match condition {
                Condition::Word { offset, mask, value } => {
                    let network = |word: u32| i32::from_ne_bytes(word.to_be_bytes());
                    rule.push(op(LOAD_WORD, 0x62, offset, 0));
                    if mask != u32::MAX {
                        rule.push(op(AND32, 2, 0, network(mask)));
                    }
                    rule.push(op(JUMP32_IF_NOT, 2, 0, network(value)));
                }
                Condition::Port(port) => {
                    rule.extend([op(LOAD_WORD, 0x62, PORT, 0), op(TO_BIG_ENDIAN, 2, 0, 16)]);
                    rule.push(op(JUMP32_IF_NOT, 2, 0, i32::from(port)));
                }
                Condition::PortFrom(port) => {
                    rule.extend([op(LOAD_WORD, 0x62, PORT, 0), op(TO_BIG_ENDIAN, 2, 0, 16)]);
                    rule.push(op(JUMP32_IF_BELOW, 2, 0, i32::from(port)));
                }
                Condition::SourcePort(port) => {
                    rule.extend([op(LOAD_DOUBLE, 0x63, SOCKET, 0), op(JUMP_IF_ZERO, 3, 0, 0)]);
                    rule.extend([op(LOAD_WORD, 0x32, SOURCE_PORT, 0), op(JUMP32_IF_NOT, 2, 0, i32::from(port))]);
                }
            }
        }
        rule.extend([op(MOVE, 0, 0, i32::from(verdict)), op(EXIT, 0, 0, 0)]);
        let length = rule.len();
        for (at, instruction) in rule.iter_mut().enumerate() {
            if [JUMP_IF_ZERO, JUMP32_IF_NOT, JUMP32_IF_BELOW].contains(&instruction.code) {
                instruction.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
            }
        }
        program.extend(rule);
    }
    program.extend([op(MOVE, 0, 0, 1), op(EXIT, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests;

//! Signals by name or number, as Docker reads them.

/// Not a signal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a signal: write a number from 1 to 64 or a name such as TERM, SIGHUP or RTMIN+3")]
pub(crate) struct SignalError(String);

/// Names of signals 1 to 31 on x86-64 (signal(7)), without `SIG`.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// First and last signal that programs may use as they like, as the C library counts them.
const REAL_TIME: (u8, u8) = (34, 64);

/// The signal's number.
pub(crate) fn signal(text: &str) -> Result<u8, SignalError> {
    let refuse = || SignalError(text.to_owned());
    if let Ok(number) = text.parse::<u8>() {
        return if (1..=REAL_TIME.1).contains(&number) { Ok(number) } else { Err(refuse()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().zip(1_u8..).find(|(known, _)| **known == name) {
        return Ok(number);
    }
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok(),
    };
    let minimum = || REAL_TIME.0.checked_add(offset(name.strip_prefix("RTMIN")?, '+')?);
    let maximum = || REAL_TIME.1.checked_sub(offset(name.strip_prefix("RTMAX")?, '-')?);
    let number = match name {
        "IOT" => Some(6),
        "CLD" => Some(17),
        "POLL" => Some(29),
        _ => minimum().or_else(maximum),
    };
    number.filter(|n| (REAL_TIME.0..=REAL_TIME.1).contains(n) || *n < 32).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SYS", 31),
            ("64", 64),
        ] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for bad in ["", "0", "65", "-9", "SIG", "TERMINATE", "RTMIN+31", "RTMIN+300", "RTMAX+1", "RTMIN-1"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}

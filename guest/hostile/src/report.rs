//! Words on the serial port.

use crate::sys::out8;

const SERIAL: u16 = 0x3f8;

/// Says this.
pub(crate) fn say(words: &str) {
    words.bytes().for_each(|byte| out8(SERIAL, byte));
}

/// Says a name of several parts.
pub(crate) fn say_name(parts: &[&str]) {
    for (place, part) in parts.iter().enumerate() {
        if place > 0 {
            say(".");
        }
        say(part);
    }
}

/// Says a number, in hexadecimal digits.
pub(crate) fn say_number(number: u64) {
    say("0x");
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (number >> (place * 4)) as u8 & 0xf;
        out8(SERIAL, if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
}

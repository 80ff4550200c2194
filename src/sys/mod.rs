//! Raw system calls that std and rustix lack.
#![allow(unsafe_code)]

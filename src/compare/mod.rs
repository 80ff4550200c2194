//! The same image and command in both isolations, measured.

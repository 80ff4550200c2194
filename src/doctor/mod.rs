//! What this host can do, and how to mend what it cannot.

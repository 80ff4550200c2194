//! Engine 2: a sandbox spec becomes an OCI bundle and runs by `libcontainer` or an outside OCI runtime.

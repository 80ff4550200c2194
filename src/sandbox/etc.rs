//! Files in `/etc` that a sandbox gets from us, the same in both isolations.

/// `/etc/hosts` of a sandbox without a network: its own name is itself.
pub fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.0.1\t{hostname}\n"
    )
}

/// `/etc/resolv.conf` of a sandbox without a network: nobody to ask.
pub fn resolv_conf() -> String {
    "# This sandbox has no network.\n".to_owned()
}

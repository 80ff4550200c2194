//! How the bare-metal program is linked: no C library, its own entry, at its own place.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    let script = format!("-Wl,-T,{}/link.ld", std::env!("CARGO_MANIFEST_DIR"));
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,-z,norelro", "-Wl,--build-id=none", &script]
    {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}

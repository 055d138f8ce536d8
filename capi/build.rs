//! Names the shared library for the loader: programs that were linked with libbraid.so seek libbraid.so.0.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-link-arg-cdylib=-Wl,-soname,libbraid.so.0");
    }
}

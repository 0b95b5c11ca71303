//! The program that the containers run brings its own `_start`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bin=bench-program=-nostartfiles");
}

//! Migrations are compiled in; a new file among them is not a change of any source file that cargo knows of.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}

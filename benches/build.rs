//! Builds the bare-metal test guest with the same stable compiler, so that the laboratory carries its image.
//!
//! rustc is called directly: the guest shares no flags, no target directory and no dependency with the workspace.
//!
//! The image has no instruction of x87, MMX, SSE or AVX: some implementations of KVM emulate the guest's instructions, and stop at
//! the first of those. The target's ABI wants SSE2, so it cannot be switched off as a feature. Instead the program has no floats,
//! LLVM may not take vector registers of its own accord (`noimplicitfloat`), and the precompiled `core`, which does use them, is
//! optimised together with the program (`lto`), so that only what is called stays. `tests/guest_image.rs` disassembles what came out.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Of everything that decides what the guest is; checked by its start on a real QEMU, not here.
const FLAGS: [&str; 14] = [
    "--edition=2024",
    "--crate-name=guest",
    "--crate-type=bin",
    "--target=x86_64-unknown-linux-gnu",
    "-Copt-level=3",
    "-Ccodegen-units=1",
    "-Clto=fat",
    "-Cllvm-args=-force-attribute=noimplicitfloat",
    "-Cpanic=abort",
    "-Crelocation-model=static",
    "-Cno-redzone=yes",
    "-Cstrip=debuginfo",
    "-Clinker=gcc",
    "-Dwarnings",
];
const LINK_FLAGS: &str = "-fuse-ld=bfd -nostdlib -nostartfiles -static -no-pie -Wl,--build-id=none -Wl,-n";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=guest");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let source = Path::new(&variable("CARGO_MANIFEST_DIR")).join("guest");
    let image = Path::new(&variable("OUT_DIR")).join("guest.elf");
    // The program is x86-64's: elsewhere the laboratory is built without it, and says so when it is asked for.
    if variable("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        fs::write(&image, []).expect("OUT_DIR is writable");
        return;
    }
    let done = Command::new(variable("RUSTC"))
        .args(FLAGS)
        .arg(format!("-Clink-args={LINK_FLAGS}"))
        .arg(format!("-Clink-arg=-Wl,-T,{}", source.join("link.ld").display()))
        .arg("-o")
        .arg(&image)
        .arg(source.join("main.rs"))
        .output();
    match done {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("the test guest does not build:\n{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("cannot run rustc for the test guest: {error}"),
    }
}

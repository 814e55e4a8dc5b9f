//! The test guest's image, disassembled: nothing in it needs more than the integer registers, so that it runs on processors and
//! emulators that know nothing else. (The guest also runs with SSE switched off: what slipped in here would be a fault there.)
#![cfg(target_arch = "x86_64")]

use std::process::Command;

use hikyaku_lab::guest::IMAGE;

/// Registers of x87, MMX, SSE, AVX and AVX-512, as objdump writes them.
const REGISTERS: [&str; 6] = ["%st", "%mm", "%xmm", "%ymm", "%zmm", "%k"];
/// Instructions for their state that name no register. All of x87 begins with an f, and nothing else does.
const MNEMONICS: [&str; 8] = ["f", "emms", "ldmxcsr", "stmxcsr", "vldmxcsr", "vstmxcsr", "vzero", "xrstor"];

fn is_unwanted(instruction: &str) -> bool {
    let mnemonic = instruction.split_ascii_whitespace().next().unwrap_or_default();
    MNEMONICS.iter().any(|unwanted| mnemonic.starts_with(unwanted))
        || REGISTERS.iter().any(|register| instruction.contains(register))
}

#[test]
fn its_image_has_no_instruction_of_a_vector_or_floating_point_unit() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let image = folder.path().join("guest.elf");
    std::fs::write(&image, IMAGE).expect("the image can be written");
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn"])
        .arg(&image)
        .output()
        .expect("objdump is in the package of the linker that made the image (binutils)");
    assert!(output.status.success(), "{output:?}");
    let listing = String::from_utf8_lossy(&output.stdout);
    // "  10074a:\tpxor   %xmm0,%xmm0"
    let instructions: Vec<&str> =
        listing.lines().filter_map(|line| line.split_once(":\t")).map(|(_, it)| it).collect();
    assert!(instructions.len() > 1000, "objdump shows {} instructions only", instructions.len());
    assert!(instructions.iter().any(|it| it.contains("rep movsb")), "objdump writes otherwise than expected");
    let unwanted: Vec<&&str> = instructions.iter().filter(|it| is_unwanted(it)).collect();
    assert!(unwanted.is_empty(), "{} instructions, such as {:?}", unwanted.len(), unwanted.first());
}

#[test]
fn unwanted_instructions_are_told_from_others() {
    for unwanted in
        ["pxor   %xmm0,%xmm0", "vmovdqu (%rdi),%ymm1", "fninit", "fld    %st(0)", "emms", "kmovw  %k1,%eax"]
    {
        assert!(is_unwanted(unwanted), "{unwanted}");
    }
    for wanted in ["mov    %rax,%rbx", "rep stos %al,%es:(%rdi)", "imul   %rdx", "hlt"] {
        assert!(!is_unwanted(wanted), "{wanted}");
    }
}

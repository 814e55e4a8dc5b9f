# From the PVH entry (32-bit, paging off, %ebx = start_info) to 64-bit Rust with an identity
# map and a stack; and the stubs of the interrupt table. x87, MMX and SSE stay off: an
# instruction of theirs is a fault, which is reported.

.set MAPPED_GIB, 16

.section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18              # name size, description size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

.section .text.boot, "ax"
.code32
.global pvh_start
pvh_start:
    cli
    cld
    movl %ebx, %ebp

    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    # Identity map of the first MAPPED_GIB GiB in 2 MiB pages.
    movl $(page_directories_pointer + 3), page_map
    movl $page_directories_pointer, %edi
    movl $(page_directories + 3), %eax
    movl $MAPPED_GIB, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $page_directories, %edi
    movl $0x83, %eax            # present, writable, 2 MiB
    xorl %edx, %edx
    movl $(MAPPED_GIB * 512), %ecx
2:  movl %eax, (%edi)
    movl %edx, 4(%edi)
    addl $0x200000, %eax
    adcl $0, %edx
    addl $8, %edi
    loop 2b

    movl $page_map, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax             # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER.LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000007, %eax       # PG, EM, MP, PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $long_start

.code64
long_start:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs

    # The linker knows the TSS's address, but a descriptor holds it in pieces.
    movl $tss, %eax
    movw %ax, gdt_tss + 2
    shrl $16, %eax
    movb %al, gdt_tss + 4
    movb %ah, gdt_tss + 7
    movw $0x18, %ax
    ltr %ax

    movl $stack_top, %esp
    movl %ebp, %edi
    xorl %ebp, %ebp
    call guest_main
    ud2

# The timer has a stack of its own (IST 1): the code it interrupts may use the red zone.
.global timer_stub
timer_stub:
    pushq %rax
    incq TICKS(%rip)
    movb $0x20, %al
    outb %al, $0x20
    popq %rax
    iretq

.global ignore_stub
ignore_stub:
    iretq

# exception_stubs: 32 stubs of 16 bytes, each leaving (vector, error code) on the stack.
.macro exception vector, has_code
    .balign 16
    .if \has_code == 0
    pushq $0
    .endif
    pushq $\vector
    jmp exception_common
.endm

.balign 16
.global exception_stubs
exception_stubs:
.irp vector, 0, 1, 2, 3, 4, 5, 6, 7
    exception \vector, 0
.endr
    exception 8, 1
    exception 9, 0
.irp vector, 10, 11, 12, 13, 14
    exception \vector, 1
.endr
    exception 15, 0
    exception 16, 0
    exception 17, 1
.irp vector, 18, 19, 20
    exception \vector, 0
.endr
    exception 21, 1
.irp vector, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    exception \vector, 0
.endr

exception_common:
    movq (%rsp), %rdi           # vector
    movq 8(%rsp), %rsi          # error code
    movq 16(%rsp), %rdx         # rip
    movq %cr2, %rcx
    andq $-16, %rsp
    call guest_fault
    ud2

# Named by the unwinding tables of the precompiled `core`; panics abort, so it is never called.
.text
.global rust_eh_personality
rust_eh_personality:
    ud2

# Called by compiled code; the precompiled `core` expects a C library to have them.
.global memcpy, memmove, memset, memcmp, bcmp, strlen
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
memmove:
    movq %rdi, %rax
    movq %rdx, %rcx
    movq %rdi, %r8
    subq %rsi, %r8
    cmpq %rdx, %r8              # unsigned: also true when dest < src
    jb 3f
    rep movsb
    ret
3:  leaq -1(%rdi,%rcx), %rdi
    leaq -1(%rsi,%rcx), %rsi
    std
    rep movsb
    cld
    ret
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
bcmp:
memcmp:
    xorl %eax, %eax
    xorl %ecx, %ecx
4:  cmpq %rdx, %rcx
    je 5f
    movzbl (%rdi,%rcx), %eax
    movzbl (%rsi,%rcx), %r8d
    incq %rcx
    subl %r8d, %eax
    je 4b
5:  ret
strlen:
    xorl %eax, %eax
6:  cmpb $0, (%rdi,%rax)
    je 7f
    incq %rax
    jmp 6b
7:  ret

.section .data
    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08: 64-bit code
    .quad 0x00cf93000000ffff    # 0x10: data
gdt_tss:
    .quad 0x0000890000000067    # 0x18: TSS, base filled in above
    .quad 0
gdt_pointer:
    .word . - gdt - 1
    .long gdt
    .long 0

    .balign 16
tss:
    .long 0
    .quad 0, 0, 0               # RSP0-2
    .quad 0
    .quad interrupt_stack_top   # IST1
    .quad 0, 0, 0, 0, 0, 0
    .quad 0
    .word 0, 0x68

.section .bss, "aw", @nobits
    .balign 4096
page_map:                   .skip 4096
page_directories_pointer:   .skip 4096
page_directories:           .skip 4096 * MAPPED_GIB
                            .skip 16384
interrupt_stack_top:
                            .skip 65536
stack_top:

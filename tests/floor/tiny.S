/* The tiny kernel of the start benchmark: an ELF that is entered at 1 MiB in 64-bit mode, or by its PVH note in 32-bit mode, writes one line to
 * COM1 and resets the machine by the keyboard controller; where that is not there, by a triple fault.
 *
 *     gcc -nostdlib -static -Wl,--build-id=none,-N,-Ttext=0x100000,--section-start=.note.Xen=0x100100 -o tiny tiny.S
 */
        .intel_syntax noprefix
        .globl _start
        .text
_start: lea     rsi, [rip + text]
        mov     dx, 0x3f8
next:   mov     al, [rsi]
        test    al, al
        jz      reset
        out     dx, al
        inc     rsi
        jmp     next
reset:  mov     al, 0xfe
        out     0x64, al
        push    0
        push    0
        lidt    [rsp]
        ud2

/* The same, as the monitors without a 64-bit entry for an ELF reach it. */
        .code32
pvh:    mov     esp, 0x8000
        mov     esi, offset text
        mov     dx, 0x3f8
next32: mov     al, [esi]
        test    al, al
        jz      reset32
        out     dx, al
        inc     esi
        jmp     next32
reset32: mov    al, 0xfe
        out     0x64, al
        push    0
        push    0
        lidt    [esp]
        ud2
text:   .asciz  "NELLY-TINY\n"

/* XEN_ELFNOTE_PHYS32_ENTRY */
        .section .note.Xen, "a", @note
        .balign 4
        .long   4, 4, 18
        .asciz  "Xen"
        .long   pvh
        .section .note.GNU-stack, "", @progbits

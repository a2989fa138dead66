/* The tiny kernel of the start benchmark: an ELF that is entered in 64-bit mode at 1 MiB, writes one line to COM1 and resets the
 * machine by the keyboard controller; where that is not there, by a triple fault.
 *
 *     gcc -nostdlib -static -Wl,--build-id=none,-N,-Ttext=0x100000 -o tiny tiny.S
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
text:   .asciz  "NELLY-TINY\n"
        .section .note.GNU-stack, "", @progbits

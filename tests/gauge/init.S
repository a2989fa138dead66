/* The init of the gauge: one byte (2, which no kernel message holds) to the console, and once it is out, a reset.
 *
 *     gcc -nostdlib -static -Wl,--build-id=none,-N -o init init.S
 */
        .intel_syntax noprefix
        .globl _start
        .text
_start: mov     eax, 1                  /* write(1, mark, 1) */
        mov     edi, 1
        lea     rsi, [rip + mark]
        mov     edx, 1
        syscall
        mov     eax, 16                 /* ioctl(1, TCSBRK, 1): tcdrain */
        mov     edi, 1
        mov     esi, 0x5409
        mov     edx, 1
        syscall
        mov     eax, 169                /* reboot(RB_AUTOBOOT) */
        mov     edi, 0xfee1dead
        mov     esi, 672274793
        mov     edx, 0x01234567
        syscall
stop:   jmp     stop
mark:   .byte   2
        .section .note.GNU-stack, "", @progbits

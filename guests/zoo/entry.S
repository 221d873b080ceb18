/*
 * Both ways into the zoo, its page tables, segments and interrupt stubs.
 *
 * The tables are constants: 4 GiB identity-mapped with 2 MiB pages, uncached from 3 GiB on, where
 * devices live.
 */
	.section .text.entry, "ax"

/* Linux 64-bit boot protocol: RSI is boot_params. */
	.code64
	.globl zoo_start64
zoo_start64:
	cli
	cld
	movl	$0, %edi
	jmp	enter

/* PVH: 32-bit, paging off, EBX is hvm_start_info. */
	.code32
	.globl zoo_start32
zoo_start32:
	cli
	cld
	movl	%cr4, %eax
	orl	$0x20, %eax			/* PAE */
	movl	%eax, %cr4
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0xC0000080, %ecx		/* EFER */
	rdmsr
	orl	$0x100, %eax			/* LME */
	wrmsr
	lgdt	gdt_pointer
	movl	%cr0, %eax
	orl	$0x80000001, %eax		/* PG, PE */
	movl	%eax, %cr0
	ljmp	$0x08, $1f
	.code64
1:	movl	$1, %edi
	movl	%ebx, %esi

/* RDI: 0 linux64, 1 PVH. RSI: what the loader left. */
enter:
	movl	$pml4, %eax
	movq	%rax, %cr3
	movl	$stack_top, %esp
	lgdt	gdt_pointer
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	pushq	$0x08
	pushq	$2f
	lretq
2:	xorl	%ebp, %ebp
	call	zoo_main
3:	cli
	hlt
	jmp	3b

/* Stubs for vectors 0 to 47, 16 bytes each: error code (or 0), vector, common. */
	.text
	.balign 16
	.globl trap_stubs
trap_stubs:
	.set	vector, 0
	.rept	48
	.balign 16
	.if	!(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
	pushq	$0
	.endif
	pushq	$vector
	jmp	trap_common
	.set	vector, vector + 1
	.endr

	.balign 16
trap_common:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	leaq	72(%rsp), %rdi			/* vector, error code, rip, ... */
	cld
	call	zoo_trap
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$16, %rsp
	iretq

/* XEN_ELFNOTE_PHYS32_ENTRY */
	.section .note.zoo, "a", @note
	.balign 4
	.long	4, 4, 18
	.asciz	"Xen"
	.long	zoo_start32

	.section .data.tables, "aw"
	.balign 4096
pml4:	.quad	pdpt + 0x03
	.fill	511, 8, 0
pdpt:	.quad	pd + 0x0003, pd + 0x1003, pd + 0x2003, pd + 0x3003
	.fill	508, 8, 0
pd:
	.set	page, 0
	.rept	1536				/* present, writable, 2 MiB */
	.quad	(page << 21) + 0x83
	.set	page, page + 1
	.endr
	.rept	512				/* and uncached */
	.quad	(page << 21) + 0x9B
	.set	page, page + 1
	.endr

	.balign 16
gdt:	.quad	0
	.quad	0x00AF9B000000FFFF		/* 08h: 64-bit code */
	.quad	0x00CF93000000FFFF		/* 10h: data */
gdt_pointer:
	.word	23
	.quad	gdt

	.section .bss.stack, "aw", @nobits
	.balign 16
	.skip	16384
stack_top:
	.section .note.GNU-stack, "", @progbits

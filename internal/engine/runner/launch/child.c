// What a new process does before it becomes a container's program: the system
// calls of a plan, one after the other, and no more. It is a copy of a process
// of many threads of which it has one, or shares that process's memory, so that
// nothing but system calls works in it: no allocation, no locks, no Go, and not
// the C library either, which keeps errno, and the compiler its stack guards, in a
// thread's own memory.

#include "child.h"

#include <errno.h>
#include <linux/sched.h>
#include <stddef.h>
#include <sys/syscall.h>

// call is a system call; it returns the result or -errno.
static long call(long nr, long a0, long a1, long a2, long a3, long a4, long a5) {
#if defined(__x86_64__)
	register long r10 __asm__("r10") = a3;
	register long r8 __asm__("r8") = a4;
	register long r9 __asm__("r9") = a5;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(a0), "S"(a1), "d"(a2), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a0;
	register long x1 __asm__("x1") = a1;
	register long x2 __asm__("x2") = a2;
	register long x3 __asm__("x3") = a3;
	register long x4 __asm__("x4") = a4;
	register long x5 __asm__("x5") = a5;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#else
#error "an architecture that Ferry does not run on"
#endif
}

static void report(int status, int32_t kind, int32_t value) {
	struct report r = {kind, value};

	call(SYS_write, status, (long)&r, sizeof(r), 0, 0, 0);
}

static _Noreturn void end(int status, int32_t kind, int32_t value) {
	report(status, kind, value);
	for (;;)
		call(SYS_exit_group, 127, 0, 0, 0, 0, 0);
}

// go_on_in_child leaves the rest of the plan to a child, whose parent is ours,
// and tells its process id.
static long go_on_in_child(uint64_t flags, int status) {
	struct clone_args how = {.flags = flags};
	long pid = call(SYS_clone3, (long)&how, sizeof(how), 0, 0, 0, 0);

	if (pid > 0)
		end(status, REPORT_PID, pid);
	return pid;
}

static long perform(const struct op *op, const long *results, int status) {
	long a[6];
	char byte;

	for (int i = 0; i < 6; i++)
		a[i] = op->from & (1u << i) ? results[op->arg[i]] : (long)op->arg[i];
	switch (op->nr) {
	case OP_FORK:
		return go_on_in_child(a[0], status);
	case OP_DIRECTORY:
		return *(const char *)a[0] == '/' ? 0 : -ENOENT;
	case OP_READY:
		report(status, REPORT_READY, 0);
		return 0;
	case OP_WAIT:
		return call(SYS_read, a[0], (long)&byte, 1, 0, 0, 0) == 1 ? 0 : -ECANCELED;
	}
	return call(op->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static _Noreturn void run(const struct launch *l) {
	long results[MAX_RESULTS] = {0};

	for (int i = 0; i < l->count; i++) {
		const struct op *op = &l->ops[i];

		if (op->only_if >= 0 && (results[op->only_if] >= 0) != op->succeeded)
			continue;
		long result = perform(op, results, l->status);
		if (op->keep >= 0)
			results[op->keep] = result;
		if (result < 0 && result >= -4095 && -result != op->ignore[0] && -result != op->ignore[1])
			end(l->status, i, -result);
	}
	end(l->status, l->count, ENOEXEC); // a plan ends with execve
}

// clone_sharing makes a process that shares this one's memory, on a stack of
// its own, and returns when that is over.
static long clone_sharing(struct launch *l) {
#if defined(__x86_64__)
	register const struct launch *job __asm__("r12") = l;
	register void (*go)(const struct launch *) __asm__("r13") = run;
	long result;

	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "mov %%r12, %%rdi\n\t"
			 "call *%%r13\n"
			 "1:"
			 : "=a"(result)
			 : "a"(SYS_clone3), "D"(&l->how), "S"(sizeof(l->how)), "r"(job), "r"(go)
			 : "rcx", "r11", "memory");
	return result;
#else
	(void)l;
	return -ENOSYS;
#endif
}

// ferry_launch makes a process that carries out a plan and returns its process
// id or -errno, which it reports too.
int ferry_launch(struct launch *l) {
	long pid = 0;

	if (l->pidns >= 0)
		pid = call(SYS_setns, l->pidns, CLONE_NEWPID, 0, 0, 0, 0);
	if (pid == 0 && l->how.stack != 0) {
		pid = clone_sharing(l);
	} else if (pid == 0) {
		pid = call(SYS_clone3, (long)&l->how, sizeof(l->how), 0, 0, 0, 0);
		if (pid == 0)
			run(l);
	}
	if (pid < 0)
		report(l->status, REPORT_NONE, -pid);
	if (l->pidns >= 0)
		call(SYS_setns, l->own_pidns, CLONE_NEWPID, 0, 0, 0, 0); // the thread ends with this start anyway
	return pid;
}

// The libseccomp calls that libcontainer makes while it computes a container's
// filter, wrapped by the linker (see filter.go); in a program linked without
// its flags they are weak and unused. The first step in a container
// finds a file at FILTER_FD. If it holds a program already, rules are not
// computed and the program is handed out as it is; if it is empty, the program
// that libseccomp computes is kept in it.

#include <fcntl.h>
#include <seccomp.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILTER_FD 3

int __real_seccomp_rule_add_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *) __attribute__((weak));
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *) __attribute__((weak));
int __real_seccomp_export_bpf(const scmp_filter_ctx, int) __attribute__((weak));

enum { ABSENT, EMPTY, FILLED };

static int file_state = ABSENT;

// Runs before libcontainer's own constructor (which has no priority) enters
// the container's namespaces, and long before Go.
__attribute__((constructor(101))) static void find_filter_file(void) {
	struct stat st;

	if (getenv("_LIBCONTAINER_INITPIPE") == NULL)
		return;
	// Without a filter the descriptor is one of libcontainer's sockets.
	if (fstat(FILTER_FD, &st) != 0 || !S_ISREG(st.st_mode))
		return;
	if (fcntl(FILTER_FD, F_SETFD, FD_CLOEXEC) != 0)
		_exit(1);
	file_state = st.st_size > 0 ? FILLED : EMPTY;
}

static int copy_filter(int to) {
	char buf[8192];
	off_t at = 0;

	for (;;) {
		ssize_t n = pread(FILTER_FD, buf, sizeof(buf), at);
		if (n <= 0)
			return n;
		for (ssize_t done = 0; done < n;) {
			ssize_t w = write(to, buf + done, n - done);
			if (w < 0)
				return -1;
			done += w;
		}
		at += n;
	}
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n,
				  const struct scmp_arg_cmp *args) {
	if (file_state == FILLED)
		return 0;
	return __real_seccomp_rule_add_array(ctx, action, syscall, n, args);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n,
					const struct scmp_arg_cmp *args) {
	if (file_state == FILLED)
		return 0;
	return __real_seccomp_rule_add_exact_array(ctx, action, syscall, n, args);
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd) {
	if (file_state == ABSENT)
		return __real_seccomp_export_bpf(ctx, fd);
	if (file_state == EMPTY) {
		int rc = __real_seccomp_export_bpf(ctx, FILTER_FD);
		if (rc != 0)
			return rc;
	}
	return copy_filter(fd);
}

// The part of a start that runs in the new process, see child.c and plan.go.

#include <linux/sched.h>
#include <stdint.h>

#define MAX_RESULTS 16

enum {
	OP_FORK = -1,      // go on in a child of its own; arg[0] are clone3's flags
	OP_DIRECTORY = -2, // the path in the buffer arg[0] must be absolute
	OP_READY = -3,     // report that all is done up to here
	OP_WAIT = -4,      // wait for a byte from the descriptor arg[0], the end without one is an error
};

// op is one system call, or one of the above.
struct op {
	int64_t nr;
	uint64_t arg[6];
	uint32_t from;     // bit i: arg[i] is the index of an earlier result
	int32_t keep;      // index of its result, -1 to drop it
	int32_t only_if;   // index of the earlier result that decides, -1 for none:
	int32_t succeeded; // whether that must have succeeded or failed
	int32_t ignore[2]; // errors that are none
};

// report is what the process writes on its status pipe.
struct report {
	int32_t kind;  // REPORT_…, or the index of the op that failed
	int32_t value; // the process id, or errno
};

enum {
	REPORT_READY = -1,
	REPORT_PID = -2,  // the plan goes on in another process
	REPORT_NONE = -3, // there is no process
};

// launch is a process to make. With how.stack it shares this process's memory,
// and ferry_launch returns when it has executed its program or ended.
struct launch {
	struct clone_args how;
	const struct op *ops;
	int count;
	int pidns;     // PID namespace to be born in, -1 for this process's or a new one
	int own_pidns; // this process's
	int status;
};

int ferry_launch(struct launch *l);

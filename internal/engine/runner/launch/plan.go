package launch

// #cgo CFLAGS: -fno-stack-protector
// #include "child.h"
import "C"

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// plan is the list of system calls that a new process makes before it becomes
// the container's program. Everything is decided, and all memory and files are
// prepared, before that process is there.
type plan struct {
	ops    []C.struct_op
	whats  []string   // what each op is for, for its error
	memory [][]byte   // what ops point to
	files  []int      // descriptors that ops use
	kept   int32      // results so far
	err    error      // why it cannot be carried out
	status *os.File   // the process's reports
	report *os.File   // the process's end of that
	theirs []*os.File // the process's ends of pipes, closed here once it has them
	goOn   []*os.File // a byte to each ends one wait
}

// The operations that are no system calls, see child.h.
const (
	opFork      = C.OP_FORK
	opDirectory = C.OP_DIRECTORY
	opReady     = C.OP_READY
	opWait      = C.OP_WAIT
)

// newPlan returns an empty plan.
func newPlan() (*plan, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &plan{status: r, report: w}, nil
}

// result is the index of a kept result.
type result int32

// fromResult is an argument that is an earlier result.
type fromResult result

// option changes an op.
type option func(*plan, *C.struct_op)

// keep keeps an op's result in r.
func keep(r *result) option {
	return func(p *plan, op *C.struct_op) {
		*r = result(p.kept)
		op.keep = C.int32_t(p.kept)
		if p.kept++; p.kept > C.MAX_RESULTS {
			p.err = errors.New("a plan with too many results")
		}
	}
}

// ifDone has an op be skipped where an earlier one has failed, with an error that was ignored.
func ifDone(r result) option {
	return func(_ *plan, op *C.struct_op) { op.only_if, op.succeeded = C.int32_t(r), 1 }
}

// ifFailed has an op be skipped where an earlier one has succeeded.
func ifFailed(r result) option {
	return func(_ *plan, op *C.struct_op) { op.only_if, op.succeeded = C.int32_t(r), 0 }
}

// ignoring has errors be none: two at most.
func ignoring(errs ...unix.Errno) option {
	return func(_ *plan, op *C.struct_op) {
		for i, e := range errs {
			op.ignore[i] = C.int32_t(e)
		}
	}
}

// file is a descriptor of this process, which the new one inherits.
type file int

// call adds a system call. Arguments are integers, strings, bytes, file,
// fromResult and pointers to memory that p holds already (uintptr).
func (p *plan) call(what string, nr int64, args ...any) {
	op := C.struct_op{nr: C.int64_t(nr), keep: -1, only_if: -1}
	i := 0
	for _, arg := range args {
		var v uint64
		switch a := arg.(type) {
		case option:
			a(p, &op)
			continue
		case int:
			v = uint64(a)
		case uintptr:
			v = uint64(a)
		case string:
			v = uint64(p.hold(append([]byte(a), 0)))
		case []byte:
			v = uint64(p.hold(a))
		case file:
			v = uint64(a)
			p.files = append(p.files, int(a))
		case fromResult:
			v = uint64(a)
			op.from |= 1 << i
		default:
			p.err = fmt.Errorf("an argument of type %T in a plan", arg)
		}
		op.arg[i] = C.uint64_t(v)
		i++
	}
	p.ops = append(p.ops, op)
	p.whats = append(p.whats, what)
}

// hold keeps memory for the plan and returns its address, which does not change:
// Go's collector moves nothing that is on the heap.
func (p *plan) hold(b []byte) uintptr {
	if len(b) == 0 {
		return 0
	}
	p.memory = append(p.memory, b)
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

// bytesOf is the memory of a value without pointers, as C has it.
func bytesOf[T any](v T) []byte {
	b := make([]byte, unsafe.Sizeof(v))
	*(*T)(unsafe.Pointer(&b[0])) = v
	return b
}

// strings holds a list of strings as execve takes it.
func (p *plan) strings(list []string) uintptr {
	var out []byte
	for _, s := range list {
		out = binary.NativeEndian.AppendUint64(out, uint64(p.hold(append([]byte(s), 0))))
	}
	return p.hold(binary.NativeEndian.AppendUint64(out, 0))
}

// forked says where a plan's process is made.
type forked struct {
	flags  uint64   // of clone3
	pid    *os.File // PID namespace, nil for this one or a new one
	ownPID *os.File // this process's own PID namespace
	group  *os.File // directory of the cgroup of v2, nil for none
	// share has the process use this one's memory, which spares both the copy.
	// Nobody else must be able to look into the process: it must be the first of
	// a PID namespace.
	share bool
}

// stackSize is plenty for child.c.
const stackSize = 16 << 10

// child is a process that carries out a plan.
type child struct {
	pid    int
	pidfd  *os.File
	plan   *plan
	status *os.File   // its reports
	goOn   []*os.File // a byte to each ends one of the plan's waits
	born   [2]int32   // process id and pidfd, from the kernel

	mu    sync.Mutex
	ended bool // and reaped: the process id may be another's
}

// start makes the process. It must be called on a thread that has the
// namespaces, root and directory that the process is to inherit, and the thread
// must call last at its end. Call await next.
func (p *plan) start(where forked) (_ *child, last func(), err error) {
	if p.err != nil {
		return nil, nil, p.err
	}
	c := &child{plan: p, status: p.status, goOn: p.goOn}
	ops, whats := p.ops, p.whats
	p.ops, p.whats = nil, nil
	p.closeAllBut(p.files...) // others may be other containers'
	p.ops, p.whats = append(p.ops, ops...), append(p.whats, whats...)

	l := &C.struct_launch{ops: &p.ops[0], count: C.int(len(p.ops)), pidns: -1, own_pidns: C.int(where.ownPID.Fd()), status: C.int(p.report.Fd())}
	l.how = C.struct_clone_args{flags: C.__u64(where.flags | unix.CLONE_PIDFD | unix.CLONE_PARENT_SETTID | unix.CLONE_CLEAR_SIGHAND),
		exit_signal: C.__u64(unix.SIGCHLD), parent_tid: C.__u64(uintptr(unsafe.Pointer(&c.born[0]))), pidfd: C.__u64(uintptr(unsafe.Pointer(&c.born[1])))}
	if where.group != nil {
		l.how.flags |= unix.CLONE_INTO_CGROUP
		l.how.cgroup = C.__u64(where.group.Fd())
	}
	if where.pid != nil {
		l.pidns = C.int(where.pid.Fd())
	}
	if where.share && canShare {
		l.how.flags |= unix.CLONE_VM | unix.CLONE_VFORK
		l.how.stack, l.how.stack_size = C.__u64(p.hold(make([]byte, stackSize))), stackSize
	}
	last = func() {
		var pins runtime.Pinner
		pins.Pin(l.ops)
		pins.Pin(c)
		C.ferry_launch(l) // what becomes of it is reported
		pins.Unpin()
		runtime.KeepAlive(c)
		runtime.KeepAlive(where)
		for _, f := range append(p.theirs, p.report) {
			f.Close()
		}
	}
	if l.how.stack == 0 {
		last()
		last = func() {}
	}
	return c, last, nil
}

// canShare: child.c has it for this architecture.
const canShare = runtime.GOARCH == "amd64"

// come takes note of the process once it has reported for the first time.
func (c *child) come() {
	if c.pidfd == nil && c.born[0] != 0 {
		c.pid = int(c.born[0])
		c.setPidfd(int(c.born[1]))
	}
}

func (c *child) setPidfd(fd int) {
	_ = unix.SetNonblock(fd, true) // for Go's poller; it cannot fail for a pidfd
	c.pidfd = os.NewFile(uintptr(fd), fmt.Sprintf("process %d", c.pid))
}

// closeAllBut closes all files but these, the standard streams and the one for reports.
func (p *plan) closeAllBut(files ...int) {
	used := append(slices.Clone(files), 0, 1, 2, int(p.report.Fd()))
	slices.Sort(used)
	used = slices.Compact(used)
	for i, fd := range used {
		last := uintptr(^uint32(0))
		if i+1 < len(used) {
			last = uintptr(used[i+1] - 1)
		}
		if first := uintptr(fd + 1); first <= last {
			p.call("close the runtime's files", unix.SYS_CLOSE_RANGE, first, last, 0)
		}
	}
}

// errEnded is a process that ended without a report: something killed it.
var errEnded = errors.New("the process was killed while it was being started")

// await returns once the plan has come to its wait, or, without one, the
// program runs.
func (c *child) await() error {
	for {
		var r C.struct_report
		buf := unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))
		_, err := io.ReadFull(c.status, buf)
		c.come()
		switch {
		case err == io.EOF && len(c.goOn) == 0:
			return nil // it closed as the program took the process's place
		case err == io.EOF:
			return errEnded
		case err != nil:
			return err
		}
		switch r.kind {
		case C.REPORT_READY:
			return nil
		case C.REPORT_NONE:
			return os.NewSyscallError("clone3", unix.Errno(r.value))
		case C.REPORT_PID:
			if err := c.follow(int(r.value)); err != nil {
				return err
			}
		default:
			return c.plan.failure(int(r.kind), unix.Errno(r.value))
		}
	}
}

// follow goes over to the process that the child has left the plan to.
func (c *child) follow(pid int) error {
	if _, err := reap(c.pid); err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	c.pidfd.Close()
	c.pid = pid
	c.setPidfd(fd)
	return nil
}

// failure is the error of an op.
func (p *plan) failure(i int, errno unix.Errno) error {
	what := "run the program"
	if i < len(p.whats) {
		what = p.whats[i]
	}
	return fmt.Errorf("%s: %w", what, errno)
}

// release ends a wait and returns when the plan has come to the next, or the
// program runs.
func (c *child) release() error {
	c.mu.Lock()
	next := c.goOn[0]
	c.goOn = c.goOn[1:]
	c.mu.Unlock()
	_, err := next.Write([]byte{1})
	next.Close()
	if err != nil {
		return errEnded
	}
	return c.await()
}

// close lets go of the pipes.
func (c *child) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Close()
	for _, f := range c.goOn {
		f.Close()
	}
}

// kill ends a process that is not the container's program yet, and reaps it.
func (c *child) kill() {
	if c.pidfd == nil { // there is none
		c.close()
		return
	}
	_ = c.signal(unix.SIGKILL) // what is left then is waited for
	_, _ = c.wait()
	c.close()
}

// copyOfPidfd is another pidfd of the process.
func (c *child) copyOfPidfd() (f *os.File, err error) {
	err = c.with(func(pidfd int) error {
		fd, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
		f = os.NewFile(uintptr(fd), fmt.Sprintf("namespaces of process %d", c.pid))
		return os.NewSyscallError("fcntl", err)
	})
	return f, err
}

// signal sends a signal; to a process that has ended, that is no error.
func (c *child) signal(sig unix.Signal) error {
	err := c.with(func(pidfd int) error {
		return os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(pidfd, sig, nil, 0))
	})
	if errors.Is(err, errHasEnded) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

var errHasEnded = errors.New("the process has ended")

// with calls f with the process's pidfd, unless it has ended and was waited for.
func (c *child) with(f func(pidfd int) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return errHasEnded
	}
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	err = raw.Control(func(fd uintptr) { done = f(int(fd)) })
	return errors.Join(err, done)
}

// wait reaps the process and returns how it has ended.
func (c *child) wait() (unix.WaitStatus, error) {
	ws, err := reap(c.pid)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.pidfd.Close()
	return ws, err
}

// gate makes a place to wait at, see waitAt.
func (p *plan) gate() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.theirs, p.goOn = append(p.theirs, r), append(p.goOn, w)
	return r, nil
}

// waitAt adds a wait for release, with the report that all is done up to there.
// Gates are come to in the order in which they were made.
func (p *plan) waitAt(gate *os.File) {
	p.call("report", opReady)
	p.call("wait for the start", opWait, file(gate.Fd()))
}

// discard lets go of a plan that is not carried out.
func (p *plan) discard() {
	for _, f := range append(append(p.theirs, p.goOn...), p.status, p.report) {
		f.Close()
	}
}

func reap(pid int) (ws unix.WaitStatus, err error) {
	for {
		if _, err = unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			return ws, os.NewSyscallError("wait4", err)
		}
	}
}

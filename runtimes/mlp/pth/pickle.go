package pth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// The pickle machine keeps values of these Go types on its stack:
// nil, bool, int64, float64, string, tuple, *list, *dict, global, *storage,
// *Tensor and mark. It calls nothing: REDUCE is understood for two globals,
// and a global off the allowlist ends the reading where it is named.
type (
	tuple  []any
	list   struct{ items []any }
	dict   struct{ keys, values []any }
	global string
	mark   struct{}
)

const (
	orderedDict   global = "collections.OrderedDict"
	rebuildTensor global = "torch._utils._rebuild_tensor_v2"
)

// storageTypes maps the allowed storage classes to safetensors' type names.
var storageTypes = map[global]string{
	"torch.FloatStorage":    "F32",
	"torch.DoubleStorage":   "F64",
	"torch.HalfStorage":     "F16",
	"torch.BFloat16Storage": "BF16",
}

// storage is a flat array in the archive, named by a persistent id.
type storage struct {
	dtype string
	key   string
	count int64
}

// view is a tensor as the pickle describes it, its data still in the archive.
type view struct {
	storage *storage
	offset  int64
	shape   []int64
	strides []int64
}

type machine struct {
	in    []byte
	pos   int
	stack []any
	memo  map[uint32]any
}

var errShort = errors.New("pickle ends early")

// unpickle runs a pickle of protocol 2 and returns the object it makes.
func unpickle(in []byte) (any, error) {
	m := &machine{in: in, memo: map[uint32]any{}}
	for {
		at := m.pos
		op, err := m.byte()
		if err != nil {
			return nil, err
		}
		if op == '.' { // STOP
			v, err := m.pop()
			if err == nil && len(m.stack) != 0 {
				err = errors.New("pickle leaves objects on its stack")
			}
			return v, err
		}
		if err := m.step(op); err != nil {
			return nil, fmt.Errorf("pickle at byte %d: %w", at, err)
		}
	}
}

// step executes one opcode. Those that PyTorch's state_dict does not need are
// refused, for each is a way to smuggle something past a reader.
func (m *machine) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		v, err := m.byte()
		if err == nil && v != 2 {
			err = fmt.Errorf("pickle protocol %d, want 2, which torch.save writes", v)
		}
		return err
	case 'c': // GLOBAL
		return m.global()
	case 'q', 'r', 'h', 'j': // BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
		return m.memory(op)
	case 'K', 'M', 'J', 0x8a, 'G', 'X', 'N', 0x88, 0x89:
		return m.literal(op)
	case '(': // MARK
		return m.push(mark{})
	case ')': // EMPTY_TUPLE
		return m.push(tuple{})
	case ']': // EMPTY_LIST
		return m.push(&list{})
	case '}': // EMPTY_DICT
		return m.push(&dict{})
	case 't': // TUPLE
		items, err := m.popMark()
		if err != nil {
			return err
		}
		return m.push(tuple(items))
	case 0x85, 0x86, 0x87: // TUPLE1, TUPLE2, TUPLE3
		items, err := m.popN(int(op) - 0x84)
		if err != nil {
			return err
		}
		return m.push(tuple(items))
	case 'a', 'e', 's', 'u': // APPEND, APPENDS, SETITEM, SETITEMS
		return m.fill(op)
	case 'Q': // BINPERSID
		return m.persistent()
	case 'R': // REDUCE
		return m.reduce()
	case 'b': // BUILD
		return m.build()
	}
	return fmt.Errorf("opcode 0x%02x is not one that a state_dict needs", op)
}

func (m *machine) memory(op byte) error {
	var key uint32
	if op == 'q' || op == 'h' {
		b, err := m.byte()
		if err != nil {
			return err
		}
		key = uint32(b)
	} else {
		b, err := m.take(4)
		if err != nil {
			return err
		}
		key = binary.LittleEndian.Uint32(b)
	}
	if op == 'q' || op == 'r' {
		if len(m.stack) == 0 {
			return errors.New("nothing to remember")
		}
		m.memo[key] = m.stack[len(m.stack)-1]
		return nil
	}
	v, ok := m.memo[key]
	if !ok {
		return fmt.Errorf("memo %d is not set", key)
	}
	return m.push(v)
}

// literal pushes a number, string, bool or None.
func (m *machine) literal(op byte) error {
	le := binary.LittleEndian
	switch op {
	case 'N':
		return m.push(nil)
	case 0x88, 0x89:
		return m.push(op == 0x88)
	}
	size := map[byte]int{'K': 1, 'M': 2, 'J': 4, 0x8a: 1, 'G': 8, 'X': 4}[op]
	b, err := m.take(size)
	if err != nil {
		return err
	}
	switch op {
	case 'K':
		return m.push(int64(b[0]))
	case 'M':
		return m.push(int64(le.Uint16(b)))
	case 'J':
		return m.push(int64(int32(le.Uint32(b))))
	case 'G':
		return m.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
	case 0x8a: // LONG1: little-endian two's complement of b[0] bytes
		n := int(b[0])
		if n > 8 {
			return errors.New("integer of more than 64 bits")
		}
		if b, err = m.take(n); err != nil {
			return err
		}
		var buf [8]byte
		if n > 0 && b[n-1]&0x80 != 0 {
			buf = [8]byte{255, 255, 255, 255, 255, 255, 255, 255}
		}
		copy(buf[:], b)
		return m.push(int64(le.Uint64(buf[:])))
	default: // 'X', BINUNICODE
		n := le.Uint32(b)
		if int64(n) > int64(len(m.in)-m.pos) {
			return errShort
		}
		if b, err = m.take(int(n)); err != nil {
			return err
		}
		return m.push(string(b))
	}
}

// fill adds items to the list or dict below them.
func (m *machine) fill(op byte) error {
	var items []any
	var err error
	switch op {
	case 'a':
		items, err = m.popN(1)
	case 's':
		items, err = m.popN(2)
	default:
		items, err = m.popMark()
	}
	if err != nil {
		return err
	}
	if len(m.stack) == 0 {
		return errors.New("nothing to add items to")
	}
	switch c := m.stack[len(m.stack)-1].(type) {
	case *list:
		if op != 'a' && op != 'e' {
			return errors.New("list is given keys")
		}
		c.items = append(c.items, items...)
	case *dict:
		if op != 's' && op != 'u' || len(items)%2 != 0 {
			return errors.New("dict is given a key without a value")
		}
		for i := 0; i < len(items); i += 2 {
			c.keys, c.values = append(c.keys, items[i]), append(c.values, items[i+1])
		}
	default:
		return fmt.Errorf("items are added to a %T", c)
	}
	return nil
}

func (m *machine) global() error {
	module, err := m.line()
	if err != nil {
		return err
	}
	name, err := m.line()
	if err != nil {
		return err
	}
	g := global(module + "." + name)
	if _, ok := storageTypes[g]; !ok && g != orderedDict && g != rebuildTensor {
		return &GlobalError{Global: string(g)}
	}
	return m.push(g)
}

// persistent understands ('storage', class, key, location, count), which is
// how torch.save refers to an array in the archive.
func (m *machine) persistent() error {
	v, err := m.pop()
	if err != nil {
		return err
	}
	id, ok := v.(tuple)
	if !ok || len(id) != 5 || id[0] != "storage" {
		return errors.New("persistent id is not that of a tensor's storage")
	}
	class, ok1 := id[1].(global)
	key, ok2 := id[2].(string)
	count, ok3 := id[4].(int64)
	dtype := storageTypes[class]
	if !ok1 || !ok2 || !ok3 || dtype == "" || count < 0 {
		return errors.New("persistent id does not describe a tensor's storage")
	}
	return m.push(&storage{dtype: dtype, key: key, count: count})
}

func (m *machine) reduce() error {
	v, err := m.popN(2)
	if err != nil {
		return err
	}
	args, ok := v[1].(tuple)
	switch {
	case ok && v[0] == orderedDict && len(args) == 0:
		return m.push(&dict{})
	case ok && v[0] == rebuildTensor:
		t, err := newView(args)
		if err != nil {
			return err
		}
		return m.push(t)
	}
	return errors.New("call of something that is not OrderedDict() or a tensor")
}

// newView understands (storage, offset, shape, strides, requires_grad, hooks[, metadata]).
func newView(args tuple) (*view, error) {
	bad := errors.New("tensor is not described by storage, offset, shape and strides")
	if len(args) < 6 || len(args) > 7 {
		return nil, bad
	}
	s, ok1 := args[0].(*storage)
	offset, ok2 := args[1].(int64)
	shape, ok3 := ints(args[2])
	strides, ok4 := ints(args[3])
	if !ok1 || !ok2 || !ok3 || !ok4 || len(shape) != len(strides) || offset < 0 {
		return nil, bad
	}
	return &view{storage: s, offset: offset, shape: shape, strides: strides}, nil
}

func ints(v any) ([]int64, bool) {
	t, ok := v.(tuple)
	if !ok {
		return nil, false
	}
	out := make([]int64, len(t))
	for i, x := range t {
		n, ok := x.(int64)
		if !ok || n < 0 {
			return nil, false
		}
		out[i] = n
	}
	return out, true
}

// build drops the attributes of an OrderedDict: a state_dict carries its
// modules' versions as _metadata. Nothing else has attributes here.
func (m *machine) build() error {
	v, err := m.popN(2)
	if err != nil {
		return err
	}
	_, ok1 := v[0].(*dict)
	_, ok2 := v[1].(*dict)
	if !ok1 || !ok2 {
		return fmt.Errorf("attributes are set on a %T", v[0])
	}
	return m.push(v[0])
}

func (m *machine) byte() (byte, error) {
	b, err := m.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

func (m *machine) take(n int) ([]byte, error) {
	if n > len(m.in)-m.pos {
		return nil, errShort
	}
	m.pos += n
	return m.in[m.pos-n : m.pos], nil
}

// line reads up to a newline, which it drops.
func (m *machine) line() (string, error) {
	for i := m.pos; i < len(m.in) && i < m.pos+256; i++ {
		if m.in[i] == '\n' {
			s := string(m.in[m.pos:i])
			m.pos = i + 1
			return s, nil
		}
	}
	return "", errors.New("name without an end")
}

func (m *machine) push(v any) error {
	m.stack = append(m.stack, v)
	return nil
}

func (m *machine) pop() (any, error) {
	v, err := m.popN(1)
	if err != nil {
		return nil, err
	}
	return v[0], nil
}

// popN takes the top n values, which must lie above the last mark.
func (m *machine) popN(n int) ([]any, error) {
	if len(m.stack) < n {
		return nil, errors.New("stack is empty")
	}
	v := append([]any(nil), m.stack[len(m.stack)-n:]...)
	for _, x := range v {
		if x == any(mark{}) {
			return nil, errors.New("stack is empty above the mark")
		}
	}
	m.stack = m.stack[:len(m.stack)-n]
	return v, nil
}

func (m *machine) popMark() ([]any, error) {
	for i := len(m.stack) - 1; i >= 0; i-- {
		if _, ok := m.stack[i].(mark); ok {
			v := append([]any(nil), m.stack[i+1:]...)
			m.stack = m.stack[:i]
			return v, nil
		}
	}
	return nil, errors.New("no mark on the stack")
}

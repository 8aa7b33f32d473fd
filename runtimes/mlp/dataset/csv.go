package dataset

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// CSVOptions says how a CSV file is laid out. The zero value reads the label
// from the first column, finds a header by itself and leaves values as they are.
type CSVOptions struct {
	Label  string  // column of the label: "first" (default) or "last"
	Header string  // "auto" (default: a first row that is no number), "yes" or "no"
	Scale  float32 // values are divided by it; 0 means 1
}

// Validate returns an error that names the option that is wrong.
func (o CSVOptions) Validate() error {
	if o.Label != "" && o.Label != "first" && o.Label != "last" {
		return fmt.Errorf("CSV label column %q is not first or last", o.Label)
	}
	if o.Header != "" && o.Header != "auto" && o.Header != "yes" && o.Header != "no" {
		return fmt.Errorf("CSV header %q is not auto, yes or no", o.Header)
	}
	if o.Scale < 0 || o.Scale-o.Scale != 0 {
		return fmt.Errorf("CSV scale %v is not a number from 0", o.Scale)
	}
	return nil
}

const maxClasses = 1 << 16

func loadCSV(path string, opts CSVOptions) (*Set, error) {
	var s *Set
	err := withFile(path, func(r io.Reader) (err error) {
		s, err = ReadCSV(r, opts)
		return err
	})
	return s, err
}

// ReadCSV reads one sample a row: a label, which is a whole number from 0, and
// numbers.
func ReadCSV(r io.Reader, opts CSVOptions) (*Set, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	s := &Set{Scale: opts.Scale}
	if s.Scale == 0 {
		s.Scale = 1
	}
	rows := csv.NewReader(r)
	rows.ReuseRecord = true
	rows.TrimLeadingSpace = true
	for first := true; ; first = false {
		rec, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("CSV: %w", err)
		}
		if first {
			if len(rec) < 2 {
				return nil, errors.New("CSV: rows have one column, want a label and at least one value")
			}
			s.Features = len(rec) - 1
			if opts.Header == "yes" || opts.Header != "no" && !isNumber(rec[0]) {
				continue
			}
		}
		line, _ := rows.FieldPos(0)
		if err := s.addRecord(rec, opts.Label == "last"); err != nil {
			return nil, fmt.Errorf("CSV line %d: %w", line, err)
		}
		if len(s.values)*4 > MaxBytes {
			return nil, fmt.Errorf("CSV: more than the limit of %d bytes of values", int64(MaxBytes))
		}
	}
	if s.Len() == 0 {
		return nil, errors.New("CSV: no samples")
	}
	return s, nil
}

func (s *Set) addRecord(rec []string, labelLast bool) error {
	label, values := rec[0], rec[1:]
	if labelLast {
		label, values = rec[len(rec)-1], rec[:len(rec)-1]
	}
	l, err := strconv.Atoi(strings.TrimSpace(label))
	if err != nil || l < 0 || l >= maxClasses {
		return fmt.Errorf("label %.40q is not a whole number from 0 below %d", label, maxClasses)
	}
	for i, v := range values {
		x, err := strconv.ParseFloat(strings.TrimSpace(v), 32)
		if err != nil || x-x != 0 {
			return fmt.Errorf("value %d, %.40q, is not a finite number", i+1, v)
		}
		s.values = append(s.values, float32(x))
	}
	s.Labels = append(s.Labels, l)
	return nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	return err == nil
}

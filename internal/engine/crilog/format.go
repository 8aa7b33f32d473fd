// Package crilog writes and reads container logs in the format of the
// Kubernetes CRI: one entry a line,
//
//	2016-10-06T00:17:09.669794202Z stdout F the content
//
// with F for a full line and P for a partial one, which the next entry of the
// same stream goes on. Every container of Ferry logs so, whoever started it.
//
// It imports the standard library alone: ferry-runner links it.
package crilog

import "time"

const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// AppendEntry appends one entry to dst. stream is "stdout" or "stderr"; content
// has no newline.
func AppendEntry(dst []byte, t time.Time, stream string, content []byte, partial bool) []byte {
	dst = AppendHead(dst, t, stream, partial)
	dst = append(dst, content...)
	return append(dst, '\n')
}

// AppendHead appends what an entry has before its content: the same for all
// entries of a moment, of which a container may write many thousands.
func AppendHead(dst []byte, t time.Time, stream string, partial bool) []byte {
	dst = t.UTC().AppendFormat(dst, timeFormat)
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	if partial {
		return append(dst, " P "...)
	}
	return append(dst, " F "...)
}

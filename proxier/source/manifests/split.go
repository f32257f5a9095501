// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
)

// chunk is a piece of a YAML file that can be parsed by itself.
type chunk struct {
	text []byte
	// line is the line in the file that the text starts with, from 1.
	line int
}

// split cuts a YAML file before every document marker, "---" at the start of a
// line, which can be nothing else there. Lines before the first document that
// hold nothing but comments and directives stay with it.
//
// Files are parsed by the piece so that a change in a large one costs what its
// documents cost that have changed.
func split(text []byte) []chunk {
	var chunks []chunk
	start, startLine := 0, 1
	preamble := true
	for pos, line := 0, 1; pos < len(text); line++ {
		end := len(text)
		if i := bytes.IndexByte(text[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		marker := isMarker(text[pos:end])
		if marker && !preamble {
			chunks = append(chunks, chunk{text: text[start:pos], line: startLine})
			start, startLine = pos, line
		}
		if marker || !isPreamble(text[pos:end]) {
			preamble = false
		}
		pos = end
	}
	return append(chunks, chunk{text: text[start:], line: startLine})
}

func isMarker(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

func isPreamble(line []byte) bool {
	line = bytes.TrimSpace(line)
	return len(line) == 0 || line[0] == '#' || line[0] == '%'
}

// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"fmt"
)

// problem is what is wrong with a file, and where in it.
type problem struct {
	// line counts from 1; it is 0 where the problem is the whole file's.
	line int
	text string
}

// problemf returns a problem in the given line.
func problemf(line int, format string, args ...any) *problem {
	return &problem{line: line, text: fmt.Sprintf(format, args...)}
}

// at returns the problem of a chunk as seen from its file, in which the chunk
// starts with the given line. YAML takes more characters for the end of a line
// than editors do, so the result is bounded by the lines that the file has.
func (p *problem) at(line int, file []byte) *problem {
	lines := bytes.Count(file, []byte("\n")) + 1
	return &problem{line: min(p.line+line-1, lines), text: p.text}
}

// in returns the problem as one line, with the path of the file.
func (p *problem) in(path string) string { return place(path, p.line) + ": " + p.text }

// place returns "path:line", or the path alone where the line is unknown.
func place(path string, line int) string {
	if line == 0 {
		return path
	}
	return fmt.Sprintf("%s:%d", path, line)
}

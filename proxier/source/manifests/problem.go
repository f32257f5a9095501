// SPDX-License-Identifier: Apache-2.0

package manifests

import "fmt"

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

// at returns the problem as seen from a file in which line 1 is the given line.
func (p *problem) at(line int) *problem {
	return &problem{line: p.line + line - 1, text: p.text}
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

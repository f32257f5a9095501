// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

const (
	// tailSize is how much of the kernel's log is kept.
	tailSize = 64 << 10
	// outOfMemory is what the kernel says when it kills a process for its memory
	// (mm/oom_kill.c).
	outOfMemory = "Out of memory: Killed process"
	// panicked is what it says when it gives up (kernel/panic.c).
	panicked = "Kernel panic"
)

// tail keeps the end of what is written to it.
type tail struct {
	also    io.Writer // may be nil
	onPanic func()    // called once
	text    []byte
	once    sync.Once
}

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if excess := len(t.text) - tailSize; excess > 0 {
		t.text = append(t.text[:0], t.text[excess:]...)
	}
	if t.contains(panicked) {
		t.once.Do(t.onPanic)
	}
	if t.also != nil {
		return t.also.Write(p)
	}
	return len(p), nil
}

func (t *tail) contains(s string) bool { return bytes.Contains(t.text, []byte(s)) }

// quote is the line of a log that tells most: the one of a panic, or else the
// last.
func (t *tail) quote() string {
	last := ""
	for line := range strings.Lines(string(t.text)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		last = line
		if strings.Contains(line, panicked) {
			break
		}
	}
	if last == "" {
		return ""
	}
	return ": " + last
}

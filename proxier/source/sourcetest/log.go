// SPDX-License-Identifier: Apache-2.0

package sourcetest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/klog/v2"
)

// Log collects log lines at verbosity 0 and lets a test wait for them.
type Log struct {
	t testing.TB

	mu      sync.Mutex
	lines   []string
	changed chan struct{} // closed and replaced at every line
}

// NewLog returns a Log for one test.
func NewLog(t testing.TB) *Log {
	return &Log{t: t, changed: make(chan struct{})}
}

// Logger returns a logger that writes to the log.
func (l *Log) Logger() klog.Logger { return klog.New(&logSink{log: l}) }

// Lines returns the lines so far: the message and then each key=value, strings
// quoted.
func (l *Log) Lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

// Matching returns the lines so far that contain all parts.
func (l *Log) Matching(parts ...string) []string {
	var out []string
	for _, line := range l.Lines() {
		if containsAll(line, parts) {
			out = append(out, line)
		}
	}
	return out
}

// WaitFor returns the first line that contains all parts, and fails the test
// where none comes within a generous time.
func (l *Log) WaitFor(parts ...string) string {
	l.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		if lines := l.Matching(parts...); len(lines) > 0 {
			return lines[0]
		}
		select {
		case <-changed:
		case <-deadline.C:
			l.t.Fatalf("no log line with %q in:\n%s", parts, strings.Join(l.Lines(), "\n"))
		}
	}
}

func (l *Log) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	close(l.changed)
	l.changed = make(chan struct{})
}

func containsAll(line string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(line, part) {
			return false
		}
	}
	return true
}

// logSink is the backend of a logger that writes to a Log.
type logSink struct {
	log    *Log
	values []any
}

var _ klog.LogSink = (*logSink)(nil)

func (s *logSink) Init(klog.RuntimeInfo)             {}
func (s *logSink) Enabled(level int) bool            { return level == 0 }
func (s *logSink) WithName(string) klog.LogSink      { return s }
func (s *logSink) Info(_ int, msg string, kv ...any) { s.log.add(s.line(msg, kv)) }

func (s *logSink) Error(err error, msg string, kv ...any) {
	if err != nil {
		kv = append([]any{"err", err.Error()}, kv...)
	}
	s.log.add(s.line(msg, kv))
}

func (s *logSink) WithValues(kv ...any) klog.LogSink {
	return &logSink{log: s.log, values: append(append([]any(nil), s.values...), kv...)}
}

func (s *logSink) line(msg string, kv []any) string {
	var b strings.Builder
	b.WriteString(msg)
	all := append(append([]any(nil), s.values...), kv...)
	for i := 0; i+1 < len(all); i += 2 {
		if text, ok := all[i+1].(string); ok {
			fmt.Fprintf(&b, " %v=%q", all[i], text)
		} else {
			fmt.Fprintf(&b, " %v=%v", all[i], all[i+1])
		}
	}
	return b.String()
}

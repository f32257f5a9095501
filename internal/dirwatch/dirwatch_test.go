// SPDX-License-Identifier: Apache-2.0

package dirwatch

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// long is how long nobody waits here unless a sign is missed.
const long = time.Minute

// TestSigns: a file that is written, replaced, or, as in a ConfigMap, led to elsewhere by
// a link beside it, gives a sign.
func TestSigns(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.conf")
	do := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	version := func(name, text string) {
		t.Helper()
		do(os.Mkdir(filepath.Join(dir, name), 0o755), os.WriteFile(filepath.Join(dir, name, "config.conf"), []byte(text), 0o644),
			os.Symlink(name, filepath.Join(dir, "..data_tmp")), os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	version("..1", "a")
	do(os.Symlink("..data/config.conf", file))
	s := New(file)
	defer s.Close()
	for _, step := range []struct {
		name   string
		change func()
	}{
		{"another version of a ConfigMap", func() { version("..2", "b") }},
		{"replaced", func() { do(os.WriteFile(file+".new", nil, 0o644), os.Rename(file+".new", file)) }},
		{"written", func() { do(os.WriteFile(file, []byte("c"), 0o644)) }},
		{"removed", func() { do(os.Remove(file)) }},
	} {
		start := time.Now()
		step.change()
		if s.Await(t.Context(), long); time.Since(start) >= long {
			t.Errorf("%s: no sign", step.name)
		}
	}
	if start := time.Now(); true {
		if s.Await(t.Context(), settle); time.Since(start) < settle {
			t.Error("a sign without a change")
		}
	}
}

// TestNoDirectory: where there is nothing to watch, there is no sign, and later there is.
func TestNoDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	s := New(filepath.Join(dir, "file"))
	defer s.Close()
	s.Await(t.Context(), time.Millisecond)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.Await(t.Context(), time.Millisecond)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if start := time.Now(); true {
		if s.Await(t.Context(), long); time.Since(start) >= long {
			t.Error("no sign")
		}
	}
}

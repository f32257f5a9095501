// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// write makes a file as an editor does, or removes it if text is empty.
func write(t *testing.T, path, text string) {
	t.Helper()
	if text == "" {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

const exempts, exemptsOther, broken = "nonMasqueradeCIDRs: [192.0.2.0/24]", "nonMasqueradeCIDRs: [198.51.100.0/24]", "nonMasqueradeCIDRs: [192.0.2.1/24]"

// TestFile: what a file says holds until it says something else; one that makes no
// sense says nothing.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ip-masq-agent")
	defaults := Defaults()
	f := NewFile(path, defaults)
	read := func(what string, want []string, changed bool) {
		t.Helper()
		got, has, err := f.Read(t.Context())
		if err != nil || has != changed {
			t.Errorf("%s: changed %v, want %v (%v)", what, has, changed, err)
		}
		if diff := cmp.Diff(prefixes(want...), got.NonMasquerade, compare); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	private := []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}
	read("no file", private, true)
	read("still none", private, false)
	write(t, path, exempts)
	read("a file", []string{"192.0.2.0/24"}, true)
	read("the same", []string{"192.0.2.0/24"}, false)
	write(t, path, broken)
	read("makes no sense", []string{"192.0.2.0/24"}, false)
	write(t, path, exemptsOther)
	read("makes sense again", []string{"198.51.100.0/24"}, true)
	write(t, path, "")
	read("gone", private, true)

	write(t, path, broken)
	f = NewFile(path, defaults)
	for range 2 {
		if _, _, err := f.Read(t.Context()); !errors.Is(err, ErrUnknown) {
			t.Errorf("a file that never made sense: %v, want %v", err, ErrUnknown)
		}
	}
	write(t, path, exempts)
	read("that does now", []string{"192.0.2.0/24"}, true)
}

// TestFollow: a change is delivered when it happens, also if a directory in the way
// is replaced, as with a mounted ConfigMap.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	link := func(version string) {
		t.Helper()
		tmp := filepath.Join(dir, "..tmp")
		if err := os.Symlink(version, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	for version, text := range map[string]string{"..1": exempts, "..2": exemptsOther} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "config"), text)
	}
	link("..1")
	path := filepath.Join(dir, "ip-masq-agent")
	if err := os.Symlink(filepath.Join("..data", "config"), path); err != nil {
		t.Fatal(err)
	}
	f := NewFile(path, Defaults())
	if _, _, err := f.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen, ended := make(chan Config), make(chan struct{})
	go func() {
		f.Follow(ctx, func(c Config) { seen <- c })
		close(ended)
	}()
	defer func() { cancel(); <-ended }()
	for _, version := range []string{"..2", "..1"} {
		link(version)
		select {
		case c := <-seen:
			want := prefixes("198.51.100.0/24")
			if version == "..1" {
				want = prefixes("192.0.2.0/24")
			}
			if diff := cmp.Diff(want, c.NonMasquerade, compare); diff != "" {
				t.Errorf("%s (-want +got):\n%s", version, diff)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no change is delivered")
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package floor

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelRecordAndReplay: what was recorded on one node makes the same rules
// on another one, and a dry run is not recorded.
func TestKernelRecordAndReplay(t *testing.T) {
	for _, v := range lab.Variants() {
		t.Run(string(v), func(t *testing.T) {
			if err := lab.VariantSupported(t.Context(), v); errors.Is(err, lab.ErrNotSupported) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			l, err := lab.New(t.Context(), lab.Config{Nodes: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}()
			rec, err := NewRecorder(t.TempDir(), v)
			if err != nil {
				t.Fatal(err)
			}
			here, there := l.Nodes[0], l.Nodes[1]
			tool := v.Tool(model.IPv4, "-restore")
			feed(t, rec, here.NS, tool, "*nat\n:A - [0:0]\n:B - [0:0]\n-A B -j RETURN\nCOMMIT\n", "--noflush", "-w", "5")
			feed(t, rec, here.NS, tool, "*nat\n:NEVER - [0:0]\nCOMMIT\n", "-w", "30", "--test", "-n")
			feed(t, rec, here.NS, "iptables-restore", "*nat\n-A A -j B\nCOMMIT\n", "--noflush", "-w", "5")
			if n, err := rec.Count(); err != nil || n != 2 {
				t.Errorf("%d restores are recorded, error %v; want 2", n, err)
			}
			texts, err := rec.Take()
			if err != nil || len(texts) != 2 {
				t.Fatalf("took %v, error %v; want 2 restores", texts, err)
			}
			if took, err := Replay(t.Context(), there.NS, texts); err != nil || took <= 0 {
				t.Errorf("replay took %s, error %v", took, err)
			}
			if diff := cmp.Diff(rules(t, here, v), rules(t, there, v)); diff != "" {
				t.Errorf("the nodes differ (-recorded +replayed):\n%s", diff)
			}
			if again, err := rec.Take(); err != nil || len(again) != 0 {
				t.Errorf("took %v again, error %v; want nothing", again, err)
			}
			if _, err := Replay(t.Context(), there.NS, texts[1:]); err != nil {
				t.Errorf("replay again: %v", err)
			}
			if err := Empty(t.Context(), here.NS, v); err != nil {
				t.Fatal(err)
			}
			if text, err := here.Save(t.Context(), v, model.IPv4); err != nil || strings.Contains(text, "-A ") || strings.Contains(text, ":A ") {
				t.Errorf("the emptied tables, error %v, have\n%s", err, text)
			}
			if _, err := Replay(t.Context(), here.NS, []Restore{{Tool: tool, File: "/dev/null/none"}}); err == nil {
				t.Error("no error for a missing file")
			}
		})
	}
}

// feed feeds a command that the recorder shadows.
func feed(t *testing.T, rec *Recorder, ns *lab.NS, tool, text string, args ...string) {
	t.Helper()
	cmd := ns.Command(t.Context(), tool, args...)
	cmd.Env = append(os.Environ(), "PATH="+rec.Bin+":"+os.Getenv("PATH"))
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
}

// rules are those of the nat table.
func rules(t *testing.T, n *lab.Node, v lab.Variant) string {
	t.Helper()
	text, err := n.Save(t.Context(), v, model.IPv4)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "-A A -j B") {
		t.Errorf("%s has no rule -A A -j B:\n%s", n.Label, text)
	}
	return text
}

func TestNewRecorderNeedsCommands(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := NewRecorder(t.TempDir(), lab.NFT); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("got error %v, want that a command is not found", err)
	}
}

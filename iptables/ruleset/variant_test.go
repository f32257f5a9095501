// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// errNotFound is what an Exec says of a command that is not installed.
var errNotFound = exec.ErrNotFound

const (
	saysNFT    = "iptables v1.8.9 (nf_tables)\n"
	saysLegacy = "iptables v1.8.9 (legacy)\n"
	saysOld    = "iptables v1.6.1\n"
)

func TestCommandsFor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		exec    script
		variant Variant
		ipv6    bool
		want    Commands
	}{
		{
			name:    "named for the variant",
			exec:    script{"iptables-nft-restore": prints(saysNFT, nil), "iptables-restore": prints(saysLegacy, nil)},
			variant: NFT,
			want:    Commands{Restore: "iptables-nft-restore", Save: "iptables-nft-save"},
		},
		{
			name:    "IPv6",
			exec:    script{"ip6tables-legacy-restore": prints(saysLegacy, nil)},
			variant: Legacy,
			ipv6:    true,
			want:    Commands{Restore: "ip6tables-legacy-restore", Save: "ip6tables-legacy-save"},
		},
		{
			name:    "plain ones of the variant",
			exec:    script{"iptables-restore": prints(saysNFT, nil)},
			variant: NFT,
			want:    Commands{Restore: "iptables-restore", Save: "iptables-save"},
		},
		{
			name:    "plain ones from before there were variants",
			exec:    script{"ip6tables-restore": prints(saysOld, nil)},
			variant: Legacy,
			ipv6:    true,
			want:    Commands{Restore: "ip6tables-restore", Save: "ip6tables-save"},
		},
		{
			name: "named ones that do not run",
			exec: script{
				"iptables-nft-restore": prints("", &CommandError{Name: "iptables-nft-restore", ExitCode: 126}),
				"iptables-restore":     prints(saysNFT, nil),
			},
			variant: NFT,
			want:    Commands{Restore: "iptables-restore", Save: "iptables-save"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := CommandsFor(t.Context(), tt.exec, tt.variant, tt.ipv6)
			if err != nil || got != tt.want {
				t.Errorf("CommandsFor() = %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestCommandsForMissing(t *testing.T) {
	for _, tt := range []struct {
		name string
		exec script
		want []string // parts of the error
	}{
		{"none installed", script{}, []string{"iptables-nft-restore", "iptables-restore", "not found"}},
		{"other variant only", script{"iptables-restore": prints(saysLegacy, nil)}, []string{"iptables-restore is the legacy variant", "iptables-nft-restore"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := CommandsFor(t.Context(), tt.exec, NFT, false)
			if !errors.Is(err, ErrNoCommand) {
				t.Fatalf("CommandsFor() = %v, want ErrNoCommand", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("CommandsFor() = %q, want it to say %q", err, want)
				}
			}
		})
	}
}

func TestCommandsForFailingCommand(t *testing.T) {
	failed := &CommandError{Name: "iptables-restore", ExitCode: 127, Stderr: "libxtables.so.12: no such file"}
	_, err := CommandsFor(t.Context(), script{"iptables-restore": prints("", failed)}, NFT, false)
	if errors.Is(err, ErrNoCommand) || !errors.Is(err, failed) {
		t.Errorf("CommandsFor() = %v, want %v, which installing would not mend", err, failed)
	}
}

func TestTransient(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		nft    bool
		legacy bool
	}{
		{"not a command's error", io.ErrUnexpectedEOF, true, true},
		{"bad input", &CommandError{ExitCode: 2}, false, false},
		{"refused by the legacy kernel", &CommandError{ExitCode: 1}, false, false},
		{"the lock was not to be had; refused by nf_tables", &CommandError{ExitCode: 4}, false, true},
		{"killed", &CommandError{ExitCode: -1}, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for v, want := range map[Variant]bool{NFT: tt.nft, Legacy: tt.legacy} {
				if got := v.transient(tt.err); got != want {
					t.Errorf("%s: transient(%v) = %t, want %t", v, tt.err, got, want)
				}
			}
		})
	}
}

func TestCommandErrorIsOneLine(t *testing.T) {
	for _, tt := range []struct {
		err  CommandError
		want string
	}{
		{CommandError{Name: "iptables-restore", ExitCode: 2, Stderr: "line 3\n  failed\n"}, "iptables-restore exited with 2: line 3 failed"},
		{CommandError{Name: "iptables-save", ExitCode: -1}, "iptables-save was killed: "},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("Error() = %q, want %q", got, tt.want)
		}
	}
}

func TestSystemExec(t *testing.T) {
	var out bytes.Buffer
	run := func(stdin string, args ...string) error {
		out.Reset()
		return SystemExec{}.Run(t.Context(), Command{Name: args[0], Args: args[1:], Stdin: strings.NewReader(stdin), Stdout: &out})
	}
	if err := run("in", "cat"); err != nil || out.String() != "in" {
		t.Errorf("cat = %q, %v, want %q", out.String(), err, "in")
	}
	if err := run("", "no-such-command-here"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("unknown command: %v, want ErrNotFound", err)
	}
	var ce *CommandError
	if err := run("", "sh", "-c", "echo oops >&2; exit 3"); !errors.As(err, &ce) || ce.ExitCode != 3 || ce.Stderr != "oops\n" {
		t.Errorf("exit 3 = %#v, want a CommandError with code 3 and what was printed", err)
	}
	if err := run("", "sh", "-c", "kill -9 $$"); !errors.As(err, &ce) || ce.ExitCode != -1 {
		t.Errorf("killed = %#v, want a CommandError with code -1", err)
	}
	if err := run("", "sh", "-c", "yes | head -c 100000 >&2; exit 1"); !errors.As(err, &ce) || len(ce.Stderr) != maxStderr {
		t.Errorf("much on stderr: kept %d bytes, want %d", len(ce.Stderr), maxStderr)
	}
}

func TestSystemExecContext(t *testing.T) {
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (SystemExec{}).Run(done, Command{Name: "true"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Run() after the end = %v, want Canceled", err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	// Ends by itself within the grace: it is not killed, and has succeeded.
	if err := (SystemExec{}).Run(soon, Command{Name: "sleep", Args: []string{"0.2"}}); err != nil {
		t.Errorf("Run() of a command that ends within the grace = %v, want nil", err)
	}
	begin := time.Now()
	if err := (SystemExec{}).Run(soonAgain(t), Command{Name: "sleep", Args: []string{"60"}}); err == nil || !Legacy.transient(err) {
		t.Errorf("Run() of a command that goes on = %v, want an error that another try may mend", err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("Run() of a command that goes on took %v, want it killed after the grace", took)
	}
}

func soonAgain(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

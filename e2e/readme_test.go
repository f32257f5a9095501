// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fairlead/e2e/lab"
)

// readmeCommands returns the first block of commands below a heading of README.md.
func readmeCommands(t *testing.T, heading string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, below, found := strings.Cut(string(text), "\n## "+heading+"\n")
	_, block, begun := strings.Cut(below, "\n```sh\n")
	block, _, ended := strings.Cut(block, "\n```\n")
	if !found || !begun || !ended {
		t.Fatalf("README.md has no commands below %q", heading)
	}
	return block
}

// TestKernelReadmeHostPort: the commands in README.md that publish a container's port
// do so, pasted into a shell as they are.
func TestKernelReadmeHostPort(t *testing.T) {
	if err := lab.Supported(testContext(t)); err != nil {
		t.Skip(err)
	}
	for _, tool := range []string{"curl", "python3", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	ctx, cancel := context.WithTimeout(testContext(t), time.Minute)
	defer cancel()
	// A network, names of networks and processes of its own; all end with the shell.
	const within = "ip link set lo up; mount -t tmpfs none /run; . "
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte(readmeCommands(t, "A port for a container, without Kubernetes")), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", within+script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil && !strings.Contains(err.Error(), "WaitDelay") {
		t.Errorf("%v\n%s", err, log.String())
	}
	if !strings.Contains(out.String(), "Directory listing for /") {
		t.Errorf("the container did not answer:\n%s\n%s", out.String(), log.String())
	}
}

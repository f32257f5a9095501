// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fairlead/e2e/build"
	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelStartOrder: agents that are there before the API server, kubelets, CNI's
// configuration and DNS write nothing until the API server is there, and then do what the
// others do.
func TestKernelStartOrder(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	f := newFixture(ctx, t)
	if err := f.StopAPIServer(); err != nil { // which had to make its credentials
		t.Fatal(err)
	}
	program, err := build.Agent(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range f.lab.Nodes {
		f.startAgent(ctx, n, program)
	}
	// Longer than client-go's first pauses, so that it matters what the last ones are.
	waited := time.After(30 * time.Second)
	f.awaitWaiting(ctx)
	select {
	case <-waited:
	case <-ctx.Done():
	}
	f.awaitWaiting(ctx)

	if err := f.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for _, n := range f.lab.Nodes {
		await(ctx, t, "the agent on "+n.Label, func() error { _, err := get(ctx, n, "http://127.0.0.1:10256/readyz"); return err })
	}
	took := time.Since(back)
	t.Logf("agents were ready %s after the API server", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("agents were ready %s after the API server", took)
	}
	f.startAll(ctx)
	f.serves(ctx)
}

// startAgent starts the program on a node, as a unit of the node's init would.
func (f *fixture) startAgent(ctx context.Context, n *lab.Node, program string) {
	f.t.Helper()
	if err := os.MkdirAll(f.cniDir(n), 0o755); err != nil {
		f.t.Fatal(err)
	}
	_, err := f.Launch(ctx, cluster.Program{
		Argv: []string{program, "--kubeconfig=" + f.Kubeconfig(), "--hostname-override=" + n.Label, "--cluster-cidr=10.244.0.0/16",
			"--cni-conf-dir=" + f.cniDir(n), "--state-file=" + filepath.Join(f.nodeDir(n), "state.json"), "-v=2"},
		Prefix: []string{"nsenter", "--net=" + n.Path(), "--"},
		Dir:    n.Label,
		Ready:  func(ctx context.Context) error { return healthy(ctx, n) },
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// awaitWaiting waits until all agents say what they cannot read, and that they are not
// ready for that; and checks that they have written nothing.
func (f *fixture) awaitWaiting(ctx context.Context) {
	f.t.Helper()
	for _, n := range f.lab.Nodes {
		await(ctx, f.t, "the agent on "+n.Label+" that waits", func() error {
			_, err := get(ctx, n, "http://127.0.0.1:10256/readyz")
			if err == nil {
				return errors.New("it is ready")
			}
			for _, part := range append([]string{"503", "waiting for the first sync", "cannot read"}, watched...) {
				if !strings.Contains(err.Error(), part) {
					return err
				}
			}
			return nil
		})
		rules, err := n.Save(ctx, lab.NFT, model.IPv4)
		if err != nil {
			f.t.Fatal(err)
		}
		if strings.Contains(rules, "KUBE-SERVICES") {
			f.t.Errorf("before it could read anything the agent on %s wrote\n%s", n.Label, rules)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fairlead/e2e/build"
	"fairlead/e2e/lab"
)

// proxyMode is the mode that agents have unless a test says otherwise. The behaviour of
// host ports and of masquerading is the same in all:
//
//	bin/uml go-test -run 'TestKernelHostPort|TestKernelPodMasq' ./e2e -args -proxy-mode=ipvs
var proxyMode = flag.String("proxy-mode", "iptables", "the `mode` that agents have unless a test says otherwise")

// iptablesMode is a flag of tests of iptables mode alone.
const iptablesMode = "--proxy-mode=iptables"

var updateGolden = flag.Bool("update", false, "write golden files")

// binary is the agent under test, built once from this tree by TestMain.
var binary string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fairlead-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// A lock of our own: that of the legacy commands is one for all namespaces,
	// and other tests may hold it for seconds.
	if err := os.Setenv("XTABLES_LOCKFILE", filepath.Join(dir, "xtables.lock")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if binary, err = build.Agent(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// testContext bounds a test and what it starts.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// newLab returns a lab of two nodes with two pods each, in which every pod
// echoes on the ports of the scenario. It skips where there can be none.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	ctx := testContext(t)
	if err := lab.Supported(ctx); err != nil {
		t.Skip(err)
	}
	l, err := lab.New(ctx, lab.Config{Nodes: 2, Pods: 2, ClientRoutes: clusterPrefixes()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, n := range l.Nodes {
		for _, pod := range n.Pods {
			for _, port := range []uint16{httpTarget, dnsTarget} {
				if _, err := pod.EchoPort(ctx, port); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return l
}

// oneVariant is the variant for what is the same with either. A kernel that has IPVS
// may have NAT for the legacy one alone.
func oneVariant() lab.Variant {
	if *proxyMode == "ipvs" {
		return lab.Legacy
	}
	return lab.NFT
}

// forVariants runs a test with either variant of iptables, each in a lab of
// its own.
func forVariants(t *testing.T, test func(t *testing.T, l *lab.Lab, v lab.Variant)) {
	for _, v := range lab.Variants() {
		t.Run(string(v), func(t *testing.T) {
			if err := lab.VariantSupported(testContext(t), v); err != nil {
				t.Skip(err)
			}
			test(t, newLab(t), v)
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/http"
	"testing"
	"time"

	"fairlead/e2e/lab"
)

// TestKernelHealthLate: an agent whose rules do not follow for twice the sync
// period says so.
func TestKernelHealthLate(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, l.Nodes[0].Pods[0])...)
	commands := newLoggedCommands(t)
	begun := commands.slowRestore(oneVariant())
	mode := *proxyMode
	if mode == "nftables" { // where health does not hang on a restore command
		mode = "iptables"
	}
	const period = time.Second
	start := time.Now()
	a := startAgentEnv(ctx, t, l.Nodes[0], oneVariant(), []string{commands.path()},
		"--proxy-mode", mode, "--manifests", dir.path, "--"+mode+"-sync-period", period.String())
	begun()
	a.waitLog(ctx, 0, 1, "Serving HTTP", "10256")
	for _, path := range []string{"healthz", "livez"} {
		for status := 0; status != http.StatusServiceUnavailable; {
			var err error
			if status, _, err = a.get(ctx, "http://127.0.0.1:10256/"+path); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); status == http.StatusServiceUnavailable && took < 2*period {
				t.Errorf("/%s fails after %s, want it to wait for %s", path, took, 2*period)
			} else if took > 10*period {
				t.Fatalf("/%s is still %d after %s", path, status, took)
			}
			time.Sleep(10 * time.Millisecond) // nothing tells when it will
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// backendCount is how many pods serve; one more is a client.
const backendCount = 3

// demo is the laboratory and what runs in it.
type demo struct {
	out       *printer
	binary    string
	manifests string
	log       string
	lab       *lab.Lab
	agent     *agent
	held      *lab.Held
	began     time.Time
}

func newDemo(ctx context.Context, binary, dir string, out *printer) (*demo, error) {
	d := &demo{
		out: out, binary: binary, began: time.Now(),
		manifests: filepath.Join(dir, "manifests"),
		log:       filepath.Join(dir, "fairlead.log"),
	}
	if err := os.Mkdir(d.manifests, 0o755); err != nil {
		return nil, fmt.Errorf("make manifest directory: %w", err)
	}
	l, err := lab.New(ctx, lab.Config{Pods: backendCount + 1, ClientRoutes: []netip.Prefix{
		netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"),
	}})
	if err != nil {
		return nil, err
	}
	d.lab = l
	for i, pod := range d.backends() {
		if _, err := pod.Echo(ctx, backendName(i), netip.AddrPortFrom(netip.IPv6Unspecified(), podPort)); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return d, nil
}

func backendName(i int) string { return fmt.Sprintf("web-%d", i+1) }

func (d *demo) node() *lab.Node     { return d.lab.Nodes[0] }
func (d *demo) backends() []*lab.NS { return d.node().Pods[:backendCount] }
func (d *demo) clientPod() *lab.NS  { return d.node().Pods[backendCount] }

// probe is a client of the Service in the client pod.
func (d *demo) probe(f model.Family) lab.Probe {
	return lab.Probe{From: d.clientPod(), Network: "tcp", To: vip(f)}
}

// close ends what runs and removes the laboratory. After a failure, but not an
// interrupt, it shows the agent's log first.
func (d *demo) close(failed bool) error {
	if d.held != nil {
		d.held.Close()
	}
	if d.agent != nil {
		d.agent.kill()
		if failed {
			d.showLog()
		}
	}
	return d.lab.Close()
}

// steps goes through what the demo claims, in order.
func (d *demo) steps(ctx context.Context) error {
	d.out.headline("A node with %d backend pods and a client pod, and a client outside, all in network namespaces.", backendCount)
	claims := []struct {
		text string
		step func(context.Context) (detail string, err error)
	}{
		{"without rules the Service web (10.96.0.10, fd00:10:96::10) is silent", d.silent},
		{"fairlead starts, and the first request is answered", d.start},
		{"requests reach every endpoint, in both families, and show the right source", d.spread},
		{"iptables-save shows the way from the Service to its endpoints", d.showRules},
		{"an endpoint is removed, and new connections avoid it", d.remove},
		{"the endpoint is added, and answers again", d.add},
		{"without endpoints a connection is refused at once", d.scaleToZero},
		{"with endpoints it is answered again", d.scaleUp},
		{"fairlead ends on SIGTERM, and its rules go on serving", d.stop},
		{"fairlead cleanup leaves no KUBE- chain in iptables-save", d.cleanup},
	}
	for _, c := range claims {
		detail, err := c.step(ctx)
		if err != nil {
			return fmt.Errorf("did not happen: %s: %w", c.text, err)
		}
		d.out.passed(c.text, detail)
	}
	d.out.headline("All %d claims held, in %.1f s.", len(claims), time.Since(d.began).Seconds())
	return nil
}

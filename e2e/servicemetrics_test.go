// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// carried is the series of a port of a Service.
func carried(name, service, port, protocol string, f model.Family, more string) string {
	namespace := "default"
	if service == "*" {
		namespace = "*"
	}
	return fmt.Sprintf("fairlead_service_%s_total{%sip_family=%q,protocol=%q,service_name=%q,service_namespace=%q,service_port=%q}",
		name, more, f, protocol, service, namespace, port)
}

// awaitMetric waits until a metric has a value: the kernel may sum up later. It must not
// have more.
func awaitMetric(ctx context.Context, t *testing.T, a *agent, name string, want float64) {
	t.Helper()
	for {
		got, err := strconv.ParseFloat(metric(ctx, t, a, name), 64)
		if err != nil || got > want {
			t.Fatalf("%s is %v, %v, want %v", name, got, err, want)
		}
		if got == want {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s is %v, want %v", name, got, want)
		}
	}
}

// awaitMore waits until a metric is above least. It must not be above most.
func awaitMore(ctx context.Context, t *testing.T, a *agent, name string, least, most float64) {
	t.Helper()
	for {
		got, err := strconv.ParseFloat(metric(ctx, t, a, name), 64)
		if err != nil || got > most || got < least {
			t.Fatalf("%s is %v, %v, want above %v, and %v at most", name, got, err, least, most)
		}
		if got > least {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s is still %v", name, got)
		}
	}
}

// TestKernelServiceMetrics: connections of the Services that were asked for are counted, of
// each port and family by itself, whatever becomes of rules and endpoints; those of others
// are one series. A restart begins at 0.
func TestKernelServiceMetrics(t *testing.T) {
	for _, args := range [][]string{nil, {"--iptables-compact"}} {
		if args != nil && *proxyMode != "iptables" {
			continue
		}
		t.Run(fmt.Sprint("with ", args), func(t *testing.T) {
			forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) { checkServiceMetrics(t, l, v, args...) })
		})
	}
}

func checkServiceMetrics(t *testing.T, l *lab.Lab, v lab.Variant, args ...string) {
	ctx := testContext(t)
	node := l.Nodes[0]
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, node.Pods[0])...)
	other := []runtime.Object{service("other", 11)}
	for _, s := range endpointSlices("other", l, node.Pods[0]) {
		other = append(other, s)
	}
	dir.write("other.yaml", other...)
	start := func() *agent {
		a := startAgent(ctx, t, node, v, append(args, "--manifests", dir.path, "--service-metrics=default/web")...)
		a.waitLog(ctx, 0, 1, "What Services carry is counted from here on")
		return a
	}
	a := start()
	connect := func(service byte, network string) {
		t.Helper()
		for _, f := range families() {
			p := webProbe(node.Pods[1], f, network)
			if service == 11 {
				p.To = netip.AddrPortFrom(vip(f, 11), p.To.Port())
			}
			for range 5 {
				if r := p.Once(ctx); r.Outcome != lab.Answered {
					t.Fatal(r)
				}
			}
		}
	}
	check := func(tcp, udp, others float64) {
		t.Helper()
		for _, f := range families() {
			awaitMetric(ctx, t, a, carried("connections", "web", "http", "TCP", f, ""), tcp)
			awaitMetric(ctx, t, a, carried("connections", "web", "dns", "UDP", f, ""), udp)
			awaitMetric(ctx, t, a, carried("connections", "*", "*", "*", f, ""), others)
		}
	}
	check(0, 0, 0)
	connect(10, "tcp")
	check(5, 0, 0)
	connect(10, "udp")
	connect(11, "tcp")
	check(5, 5, 5)

	from := len(a.log())
	dir.write("web.yaml", web(l, node.Pods[0], l.Nodes[1].Pods[0])...)
	a.waitSynced(ctx, from)
	check(5, 5, 5)
	connect(10, "tcp")
	check(10, 5, 5)
	from = len(a.log())
	dir.write("web.yaml", web(l, l.Nodes[1].Pods[0])...)
	a.waitSynced(ctx, from)
	check(10, 5, 5)
	connect(10, "tcp")
	if args != nil { // the rule of an endpoint, which had up to 5, may have begun anew and have more
		connect(10, "tcp")
		for _, f := range families() {
			awaitMore(ctx, t, a, carried("connections", "web", "http", "TCP", f, ""), 10, 20)
		}
	} else {
		check(15, 5, 5)
	}
	if *proxyMode == "ipvs" {
		checkServiceBytes(ctx, t, a)
	}
	a.stop()
	a = start()
	check(0, 0, 0)
	connect(10, "udp")
	check(0, 5, 0)
	a.stop()
}

// checkServiceBytes: a connection has three packets at least to the Service, and two back.
func checkServiceBytes(ctx context.Context, t *testing.T, a *agent) {
	t.Helper()
	for _, f := range families() {
		for direction, least := range map[string]float64{"in": 3, "out": 2} {
			for name, each := range map[string]float64{"packets": 1, "bytes": 40} {
				series := carried(name, "web", "http", "TCP", f, `direction="`+direction+`",`)
				got, err := strconv.ParseFloat(metric(ctx, t, a, series), 64)
				if err != nil || got < 15*least*each {
					t.Errorf("%s is %v, %v, want %v at least", series, got, err, 15*least*each)
				}
			}
		}
	}
}

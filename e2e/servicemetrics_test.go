// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/iptables"
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

// bounds are the least and the most that a metric is to have.
type bounds struct{ least, most float64 }

// awaitMetrics waits until metrics have at least what they are to have: the kernel may sum
// up later, and is not read with each scrape. None must have more.
func awaitMetrics(ctx context.Context, t *testing.T, a *agent, want map[string]bounds) {
	t.Helper()
	for {
		_, body := fetch(ctx, t, a, "http://127.0.0.1:10249/metrics")
		got := map[string]float64{}
		for line := range strings.Lines(body) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok {
				got[name+"}"], _ = strconv.ParseFloat(value, 64)
			}
		}
		missing := ""
		for name, b := range want {
			n, ok := got[name]
			if !ok || n > b.most {
				t.Fatalf("%s is %v (%t), want %v to %v", name, n, ok, b.least, b.most)
			}
			if n < b.least {
				missing = fmt.Sprintf("%s is %v, want %v to %v", name, n, b.least, b.most)
			}
		}
		if missing == "" {
			return
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(missing)
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
		want := map[string]bounds{}
		for _, f := range families() {
			want[carried("connections", "web", "http", "TCP", f, "")] = bounds{tcp, tcp}
			want[carried("connections", "web", "dns", "UDP", f, "")] = bounds{udp, udp}
			want[carried("connections", "*", "*", "*", f, "")] = bounds{others, others}
		}
		awaitMetrics(ctx, t, a, want)
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
		want := map[string]bounds{}
		for _, f := range families() {
			want[carried("connections", "web", "http", "TCP", f, "")] = bounds{11, 20}
		}
		awaitMetrics(ctx, t, a, want)
	} else {
		check(15, 5, 5)
	}
	checkServiceBytes(ctx, t, a)
	a.stop()
	a = start()
	check(0, 0, 0)
	connect(10, "udp")
	check(0, 5, 0)
	a.stop()
	switch *proxyMode {
	case "nftables":
		checkCountingSets(ctx, t, node, v, dir)
		fallthrough
	case "ipvs":
		return
	}
	text := save(ctx, t, node, v)
	for _, set := range []string{iptables.TrafficSet(false), iptables.TrafficSet(true)} {
		if !strings.Contains(text, "--match-set "+set+" dst,dst") || !slices.Contains(setsOn(ctx, t, node), set) {
			t.Errorf("no set %s, or no rule:\n%s", set, text)
		}
	}
	a = startAgent(ctx, t, node, v, "--manifests", dir.path)
	a.waitSynced(ctx, 0)
	if text := save(ctx, t, node, v); strings.Contains(text, "KUBE-TRAFFIC") || strings.Contains(text, "KUBE-6-TRAFFIC") {
		t.Errorf("without the flag rules are left:\n%s", text)
	}
	a.stop()
	cleanUp(ctx, t, node)
	if sets := setsOn(ctx, t, node); len(sets) > 0 {
		t.Errorf("after cleanup there are sets: %q", sets)
	}
}

// checkCountingSets: what counts a Service is named by it, and goes with the flag.
func checkCountingSets(ctx context.Context, t *testing.T, node *lab.Node, v lab.Variant, dir *directory) {
	t.Helper()
	list := func() (text string) {
		t.Helper()
		for _, f := range []string{"ip", "ip6"} {
			out, err := node.Run(ctx, "nft", "list", "table", f, "fairlead")
			if err != nil {
				t.Fatal(err)
			}
			text += out
		}
		return text
	}
	own := regexp.MustCompile(`tcp \. \d+ \. (original|reply) counter packets [1-9]\d* bytes \d+ comment "default/web:http"`)
	if text := list(); len(own.FindAllString(text, -1)) != 4 || regexp.MustCompile(`counter packets \d+ bytes \d+ comment "default/other`).MatchString(text) {
		t.Errorf("of two Services one is to be counted by itself, both ways, in both families:\n%s", text)
	}
	a := startAgent(ctx, t, node, v, "--manifests", dir.path)
	a.waitSynced(ctx, 0)
	for strings.Contains(list(), "traffic") {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("without the flag there is:\n%s", list())
		}
	}
	a.stop()
}

// checkServiceBytes: a connection has three packets at least to the Service, and two back.
func checkServiceBytes(ctx context.Context, t *testing.T, a *agent) {
	t.Helper()
	want := map[string]bounds{}
	for _, f := range families() {
		least := map[string]float64{"in": 3}
		if *proxyMode != "iptables" {
			least["out"] = 2
		}
		for direction, packets := range least {
			for name, each := range map[string]float64{"packets": 1, "bytes": 40} {
				want[carried(name, "web", "http", "TCP", f, `direction="`+direction+`",`)] = bounds{15 * packets * each, 1e6}
			}
		}
	}
	awaitMetrics(ctx, t, a, want)
}

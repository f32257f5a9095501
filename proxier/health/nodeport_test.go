// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"fairlead/proxier/health"
	"fairlead/proxier/model"
)

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.MustParseAddr("::1")
	web       = model.ObjectKey{Namespace: "shop", Name: "web"}
	dns       = model.ObjectKey{Namespace: "kube-system", Name: "dns"}
)

// ports is what to hand to Sync.
type ports = map[uint16]health.NodePortService

// freePort returns a port that is free on loopback, in both families.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		l := occupy(t)
		port := netip.MustParseAddrPort(l.Addr().String()).Port()
		six, err := net.Listen("tcp6", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			if err := six.Close(); err != nil {
				t.Fatal(err)
			}
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func newNodePorts(t *testing.T, cfg health.NodePortsConfig) *health.NodePorts {
	t.Helper()
	if cfg.State == nil {
		cfg.State = newState(t, health.Config{})
	}
	n := health.NewNodePorts(cfg)
	t.Cleanup(func() {
		n.Close()
		goleak.VerifyNone(t)
	})
	return n
}

// answer asks once, with a connection of its own.
func answer(t *testing.T, addr netip.Addr, port uint16) (*http.Response, string, error) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + netip.AddrPortFrom(addr, port).String() + "/any/path?at=all")
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body), nil
}

// wantAnswer checks an answer's status and its number of endpoints.
func wantAnswer(t *testing.T, when string, addr netip.Addr, port uint16, code, endpoints int) {
	t.Helper()
	resp, body, err := answer(t, addr, port)
	if err != nil {
		t.Errorf("%s: %v", when, err)
		return
	}
	weight := resp.Header.Get("X-Load-Balancing-Endpoint-Weight")
	if resp.StatusCode != code || weight != fmt.Sprint(endpoints) {
		t.Errorf("%s: got %d, weight %s: %s, want %d, weight %d", when, resp.StatusCode, weight, body, code, endpoints)
	}
}

func wantRefused(t *testing.T, when string, addr netip.Addr, port uint16) {
	t.Helper()
	if _, _, err := answer(t, addr, port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s: got error %v, want %v", when, err, syscall.ECONNREFUSED)
	}
}

// TestNodePortAnswer compares whole answers with those that kube-proxy v1.36
// gives.
func TestNodePortAnswer(t *testing.T) {
	late := func(s *health.State) { s.Queued(model.IPv4, time.Now().Add(-time.Hour)) }
	for _, tt := range []struct {
		name      string
		endpoints int
		state     func(*health.State)
		code      int
		body      string
	}{
		{
			name: "endpoints", endpoints: 2, state: func(*health.State) {}, code: 200,
			body: "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}",
		},
		{
			name: "none", state: func(*health.State) {}, code: 503,
			body: "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 0,\n\t\"serviceProxyHealthy\": true\n}",
		},
		{
			name: "endpoints, and rules that do not keep up", endpoints: 2, state: late, code: 503,
			body: "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": false\n}",
		},
		{
			name: "endpoints, on a node that is not eligible", endpoints: 1, code: 200,
			state: func(s *health.State) { s.SetNodeEligible(false) },
			body:  "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state := newState(t, health.Config{})
			tt.state(state)
			n := newNodePorts(t, health.NodePortsConfig{State: state})
			port := freePort(t)
			n.Sync(t.Context(), []netip.Addr{loopback4}, ports{port: {Service: web, LocalEndpoints: tt.endpoints}})
			resp, body, err := answer(t, loopback4, port)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.code || body != tt.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.code, tt.body)
			}
			got := map[string]string{}
			for key := range resp.Header {
				if key != "Date" {
					got[key] = resp.Header.Get(key)
				}
			}
			if diff := cmp.Diff(map[string]string{
				"Content-Type":                     "application/json",
				"X-Content-Type-Options":           "nosniff",
				"X-Load-Balancing-Endpoint-Weight": fmt.Sprint(tt.endpoints),
				"Content-Length":                   fmt.Sprint(len(tt.body)),
			}, got); diff != "" {
				t.Errorf("headers: -want +got:\n%s", diff)
			}
		})
	}
}

func TestNodePortsSync(t *testing.T) {
	n := newNodePorts(t, health.NodePortsConfig{})
	one, two := freePort(t), freePort(t)
	both := []netip.Addr{loopback4, loopback6}
	steps := []struct {
		name  string
		addrs []netip.Addr
		want  ports
		check func(when string)
	}{
		{"one port", both[:1], ports{one: {web, 1}}, func(when string) {
			wantAnswer(t, when, loopback4, one, 200, 1)
			wantRefused(t, when, loopback6, one)
			wantRefused(t, when, loopback4, two)
		}},
		{"no endpoints", both[:1], ports{one: {web, 0}}, func(when string) {
			wantAnswer(t, when, loopback4, one, 503, 0)
		}},
		{"another port, another address", both, ports{one: {web, 3}, two: {dns, 0}}, func(when string) {
			wantAnswer(t, when, loopback4, one, 200, 3)
			wantAnswer(t, when, loopback6, one, 200, 3)
			wantAnswer(t, when, loopback6, two, 503, 0)
		}},
		{"the first port gone", both, ports{two: {dns, 1}}, func(when string) {
			wantRefused(t, when, loopback4, one)
			wantAnswer(t, when, loopback6, two, 200, 1)
		}},
		{"the second is another Service's", both, ports{two: {web, 2}}, func(when string) {
			if _, body, err := answer(t, loopback4, two); err != nil || !strings.Contains(body, `"web"`) {
				t.Errorf("%s: got %s, %v, want the answer for web", when, body, err)
			}
		}},
		{"an address gone", both[:1], ports{two: {web, 2}}, func(when string) {
			wantAnswer(t, when, loopback4, two, 200, 2)
			wantRefused(t, when, loopback6, two)
		}},
		{"on all addresses", []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, ports{two: {web, 2}}, func(when string) {
			wantAnswer(t, when, loopback4, two, 200, 2)
			wantAnswer(t, when, loopback6, two, 200, 2)
		}},
		{"all IPv6 addresses", []netip.Addr{netip.IPv6Unspecified()}, ports{two: {web, 2}}, func(when string) {
			wantRefused(t, when, loopback4, two)
			wantAnswer(t, when, loopback6, two, 200, 2)
		}},
		{"on no address", nil, ports{two: {web, 2}}, func(when string) {
			wantRefused(t, when, loopback6, two)
		}},
		{"nothing", both, nil, func(when string) {
			wantRefused(t, when, loopback4, two)
		}},
	}
	for _, step := range steps {
		n.Sync(t.Context(), step.addrs, step.want)
		step.check(step.name)
	}
	n.Sync(t.Context(), both, ports{one: {web, 1}})
	n.Close()
	wantRefused(t, "closed", loopback4, one)
	n.Sync(t.Context(), both, ports{one: {web, 1}})
	wantRefused(t, "synced when closed", loopback4, one)
}

// TestNodePortsLoseNoRequest asks without a pause while all around changes.
func TestNodePortsLoseNoRequest(t *testing.T) {
	n := newNodePorts(t, health.NodePortsConfig{})
	steady, other := freePort(t), freePort(t)
	n.Sync(t.Context(), []netip.Addr{loopback4}, ports{steady: {web, 1}})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, keepAlive := range []bool{true, false} {
		wg.Go(func() {
			client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: !keepAlive}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", steady))
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("got %v, %v, want 200", resp, err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
	for i := range 200 {
		want := ports{steady: {web, 1 + i%3}}
		if i%2 == 0 {
			want[other] = health.NodePortService{Service: dns}
		}
		if i%5 == 0 {
			want[steady] = health.NodePortService{Service: dns, LocalEndpoints: 1}
		}
		addrs := []netip.Addr{loopback4, loopback6}
		n.Sync(t.Context(), addrs[:1+i%2], want)
	}
	close(stop)
	wg.Wait()
}

// failures records what is reported.
type failures struct {
	mu   sync.Mutex
	list []string
}

func (f *failures) add(s model.ObjectKey, port uint16, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, fmt.Sprintf("%s %t", s, errors.Is(err, syscall.EADDRINUSE)))
}

func (f *failures) got() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.list...)
}

func TestNodePortsTaken(t *testing.T) {
	ctx, logged := logTo(t)
	other := occupy(t)
	taken := netip.MustParseAddrPort(other.Addr().String()).Port()
	free := freePort(t)
	var f failures
	n := newNodePorts(t, health.NodePortsConfig{Failed: f.add})
	addrs := []netip.Addr{loopback4}
	n.Sync(ctx, addrs, ports{taken: {web, 1}, free: {dns, 1}})
	wantAnswer(t, "beside a port that is taken", loopback4, free, 200, 1)
	n.Sync(ctx, addrs, ports{taken: {web, 1}, free: {dns, 1}})
	if diff := cmp.Diff([]string{"shop/web true"}, f.got()); diff != "" {
		t.Errorf("failures: -want +got:\n%s", diff)
	}
	for _, want := range []string{"shop/web", fmt.Sprint(taken), "address already in use"} {
		if lines := grep(logged(), "does not answer"); len(lines) != 1 || !strings.Contains(lines[0], want) {
			t.Errorf("got lines %q, want one with %q", lines, want)
		}
	}

	n.Sync(ctx, addrs, ports{taken: {dns, 1}})
	if diff := cmp.Diff([]string{"shop/web true", "kube-system/dns true"}, f.got()); diff != "" {
		t.Errorf("failures, the port being another Service's: -want +got:\n%s", diff)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	n.Sync(ctx, addrs, ports{taken: {dns, 1}})
	wantAnswer(t, "at the Sync after the port is free", loopback4, taken, 200, 1)
	if lines := grep(logged(), "answers now"); len(lines) != 1 {
		t.Errorf("got lines %q, want one", lines)
	}
}

func grep(text, part string) (out []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			out = append(out, line)
		}
	}
	return out
}

// TestNodePortsRetry: a port that becomes free is answered on without a Sync.
func TestNodePortsRetry(t *testing.T) {
	other := occupy(t)
	port := netip.MustParseAddrPort(other.Addr().String()).Port()
	var f failures
	n := newNodePorts(t, health.NodePortsConfig{Failed: f.add})
	ctx, _ := logTo(t)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- n.Run(ctx) }()
	n.Sync(ctx, []netip.Addr{loopback4}, ports{port: {web, 1}})
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		if resp, _, err := answer(t, loopback4, port); err == nil && resp.StatusCode == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the port is not tried again")
		}
		time.Sleep(time.Millisecond)
	}
	if got := f.got(); len(got) != 1 {
		t.Errorf("got failures %q, want one", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	wantRefused(t, "after Run has ended", loopback4, port)
}

// TestNodePortsCloseDespiteClients: clients that connect and say nothing, or
// half of a request, do not hold up Close.
func TestNodePortsCloseDespiteClients(t *testing.T) {
	n := newNodePorts(t, health.NodePortsConfig{})
	port := freePort(t)
	n.Sync(t.Context(), []netip.Addr{loopback4}, ports{port: {web, 1}})
	for _, said := range []string{"", "GET / HTTP/1.1\r\n"} {
		conn, err := net.Dial("tcp", netip.AddrPortFrom(loopback4, port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, said); err != nil {
			t.Fatal(err)
		}
	}
	wantAnswer(t, "after both have been accepted", loopback4, port, 200, 1)
	began := time.Now()
	n.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Close took %v, want about a second", took)
	}
}

func TestNodePortServices(t *testing.T) {
	name := func(svc model.ObjectKey, port string) model.ServicePortName {
		return model.ServicePortName{Service: svc, Port: port, Protocol: model.TCP}
	}
	ready := func(number uint16, ips ...string) *model.ServicePort {
		p := &model.ServicePort{HealthCheckNodePort: number}
		for _, ip := range ips {
			p.LocalReady = append(p.LocalReady, netip.MustParseAddr(ip))
		}
		return p
	}
	s := health.NewNodePortServices()
	for i, step := range []struct {
		name model.ServicePortName
		port *model.ServicePort
		want ports
		same bool // as before, which is said before it is asked for
	}{
		{name: name(web, "http"), want: ports{}, same: true},
		{name: name(web, "http"), port: ready(0, "10.0.0.1"), want: ports{}, same: true},
		{name: name(web, "http"), port: ready(30001, "10.0.0.1", "10.0.0.2"), want: ports{30001: {web, 2}}},
		{name: name(web, "http"), port: ready(30001, "10.0.0.1", "10.0.0.2"), want: ports{30001: {web, 2}}, same: true},
		{name: name(web, "https"), port: ready(30001, "10.0.0.2", "10.0.0.3"), want: ports{30001: {web, 3}}},
		{name: name(dns, "dns"), port: ready(30002), want: ports{30001: {web, 3}, 30002: {dns, 0}}},
		{name: name(web, "http"), want: ports{30001: {web, 2}, 30002: {dns, 0}}},
		{name: name(dns, "dns"), port: ready(30001), want: ports{30001: {dns, 0}}},
		{name: name(dns, "dns"), port: ready(0, "10.0.0.1"), want: ports{30001: {web, 2}}},
		{name: name(web, "https"), want: ports{}},
		{name: name(web, "none"), want: ports{}, same: true},
	} {
		s.Set(step.name, step.port)
		if s.Changed() == step.same {
			t.Errorf("step %d: got changed %t", i, s.Changed())
		}
		if diff := cmp.Diff(step.want, s.Wanted()); diff != "" {
			t.Errorf("step %d: -want +got:\n%s", i, diff)
		}
	}
}

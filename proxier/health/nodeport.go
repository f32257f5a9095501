// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"fairlead/proxier/model"
)

// NodePortService is the Service that a health check node port is for.
type NodePortService struct {
	Service model.ObjectKey
	// LocalEndpoints is how many endpoints it has on this node.
	LocalEndpoints int
}

// NodePortsConfig is what NodePorts are made of.
type NodePortsConfig struct {
	// State tells whether the rules keep up. While they do not, no Service is
	// healthy.
	State *State
	// Failed, unless nil, is called when a Service's port cannot be answered
	// on, once until it can be again.
	Failed func(s model.ObjectKey, port uint16, err error)
}

// NodePorts answers load balancers that ask whether this node has endpoints of
// a Service whose external traffic policy is Local. Its methods may be called
// at any time from any goroutine.
type NodePorts struct {
	state  *State
	failed func(model.ObjectKey, uint16, error)
	wake   chan struct{} // capacity 1: holds a token while ports are to be retried
	wg     sync.WaitGroup

	mu        sync.Mutex // guards what follows
	closed    bool
	addrs     []netip.Addr
	ports     map[uint16]*nodePort
	listeners map[netip.AddrPort]net.Listener
	// failing has the ports that do not answer on all addresses, each with the
	// Service that was told so.
	failing map[uint16]model.ObjectKey
}

// nodePort is what a port answers.
type nodePort struct {
	service atomic.Pointer[NodePortService]
	state   *State
}

// NewNodePorts returns NodePorts that answer on no port.
func NewNodePorts(cfg NodePortsConfig) *NodePorts {
	if cfg.Failed == nil {
		cfg.Failed = func(model.ObjectKey, uint16, error) {}
	}
	return &NodePorts{
		state: cfg.State, failed: cfg.Failed,
		wake:      make(chan struct{}, 1),
		ports:     map[uint16]*nodePort{},
		listeners: map[netip.AddrPort]net.Listener{},
		failing:   map[uint16]model.ObjectKey{},
	}
}

// Sync makes exactly these ports answer, on the addresses, of which an
// unspecified one stands for all of its family. What stays the same is not
// interrupted, a change of Service or of its endpoints included. A port that
// cannot be bound is tried again by the next Sync, and by Run.
func (n *NodePorts) Sync(ctx context.Context, addrs []netip.Addr, want map[uint16]NodePortService) {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.addrs = slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	for port, p := range n.ports {
		if _, ok := want[port]; !ok {
			p.service.Store(&NodePortService{Service: p.service.Load().Service})
			delete(n.ports, port)
			delete(n.failing, port)
		}
	}
	for port, s := range want {
		if n.ports[port] == nil {
			n.ports[port] = &nodePort{state: n.state}
		}
		n.ports[port].service.Store(&s)
	}
	n.closeUnwantedLocked()
	failures := n.bindLocked(ctx)
	n.mu.Unlock()
	n.report(failures)
}

// Run tries again the ports that cannot be bound, until ctx is done; then it
// closes n and returns nil.
func (n *NodePorts) Run(ctx context.Context) error {
	defer n.Close()
	for pause := firstRetry; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause + rand.N(pause/2)):
		}
		if n.retry(ctx) {
			pause = firstRetry
		} else {
			pause = min(2*pause, lastRetry)
		}
	}
}

// retry tells whether all ports answer now.
func (n *NodePorts) retry(ctx context.Context) bool {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return true
	}
	failures := n.bindLocked(ctx)
	all := len(n.failing) == 0
	n.mu.Unlock()
	n.report(failures)
	return all
}

// Close stops answering, for good. Running requests have a second to finish.
func (n *NodePorts) Close() {
	n.mu.Lock()
	n.closed = true
	clear(n.ports)
	n.closeUnwantedLocked()
	n.mu.Unlock()
	n.wg.Wait()
}

// closeUnwantedLocked stops listening where that is not wanted; mu must be held.
// The addresses are free when it returns.
func (n *NodePorts) closeUnwantedLocked() {
	for at, l := range n.listeners {
		if n.ports[at.Port()] == nil || !slices.Contains(n.addrs, at.Addr()) {
			delete(n.listeners, at)
			_ = l.Close() // it is out of use in any case
		}
	}
}

// nodePortLogName is where the log lines about these ports come from.
const nodePortLogName = "health-check-node-port"

// failure is a port that has begun to fail.
type failure struct {
	service model.ObjectKey
	port    uint16
	err     error
}

// bindLocked listens where that is wanted and not done yet; mu must be held. It
// returns the ports that have begun to fail.
func (n *NodePorts) bindLocked(ctx context.Context) []failure {
	logger := klog.FromContext(ctx).WithName(nodePortLogName)
	var out []failure
	if ctx.Err() != nil { // no address can be had, and that means nothing
		return nil
	}
	for _, port := range slices.Sorted(maps.Keys(n.ports)) {
		p := n.ports[port]
		service := p.service.Load().Service
		told, failing := n.failing[port]
		err := n.bindPortLocked(ctx, port, p)
		switch {
		case err == nil && failing:
			delete(n.failing, port)
			logger.Info("Health check node port answers now", "service", service, "port", port)
		case err != nil && (!failing || told != service):
			n.failing[port] = service
			out = append(out, failure{service, port, err})
			logger.Error(err, "Health check node port does not answer, so load balancers send this node nothing; will retry", "service", service, "port", port)
		}
	}
	if len(n.failing) > 0 {
		n.wakeUp()
	}
	return out
}

// bindPortLocked listens on the addresses on which a port is missing. Its error
// is that of the first that cannot be had.
func (n *NodePorts) bindPortLocked(ctx context.Context, port uint16, p *nodePort) error {
	logger := klog.FromContext(ctx).WithName(nodePortLogName)
	var first error
	failed := 0
	for _, addr := range n.addrs {
		at := netip.AddrPortFrom(addr, port)
		if n.listeners[at] != nil {
			continue
		}
		network := "tcp4"
		if addr.Is6() {
			network = "tcp6"
		}
		l, err := new(net.ListenConfig).Listen(ctx, network, at.String())
		if err != nil {
			failed++
			first = cmp.Or(first, err)
			continue
		}
		logger.V(2).Info("Serving health check node port", "service", p.service.Load().Service, "address", at)
		n.listeners[at] = l
		n.serve(ctx, at, l, p)
	}
	if failed > 1 {
		return fmt.Errorf("%w, and on %d more addresses", first, failed-1)
	}
	return first
}

// serve answers on l until it is closed; then running requests have a second to
// finish.
func (n *NodePorts) serve(ctx context.Context, at netip.AddrPort, l net.Listener, p *nodePort) {
	logger := klog.FromContext(ctx).WithName(nodePortLogName)
	srv := newServer(logger, p)
	n.wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, net.ErrClosed) {
			n.lost(logger, at, l, err)
		}
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // whoever is still there has been told to hurry
		}
	})
}

// lost notes that a listener has come to an end by itself, so that Run binds it
// anew.
func (n *NodePorts) lost(logger klog.Logger, at netip.AddrPort, l net.Listener, err error) {
	logger.Error(err, "Health check node port is lost; will retry", "address", at)
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.ports[at.Port()]; p != nil && n.listeners[at] == l {
		delete(n.listeners, at)
		n.failing[at.Port()] = p.service.Load().Service
		n.wakeUp()
	}
}

// wakeUp makes Run retry.
func (n *NodePorts) wakeUp() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// report tells of failures; mu must not be held.
func (n *NodePorts) report(failures []failure) {
	for _, f := range failures {
		n.failed(f.service, f.port, f.err)
	}
}

// nodePortReport is the body of an answer. Its layout is kube-proxy's.
type nodePortReport struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// ServeHTTP answers any path: 200 if there are endpoints and the rules keep up,
// else 503.
func (p *nodePort) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s := p.service.Load()
	r := nodePortReport{LocalEndpoints: s.LocalEndpoints, ServiceProxyHealthy: p.state.Healthy()}
	r.Service.Namespace, r.Service.Name = s.Service.Namespace, s.Service.Name
	body, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	code := http.StatusServiceUnavailable
	if r.LocalEndpoints > 0 && r.ServiceProxyHealthy {
		code = http.StatusOK
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(r.LocalEndpoints))
	w.WriteHeader(code)
	_, _ = w.Write(body) // the load balancer has gone: nobody is left to tell
}

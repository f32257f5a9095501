// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// marks are Services that come last of the objects of a scenario and by which
// the end of a sync is seen: "marker" answers on a port that no earlier
// scenario had, by the other of two endpoints, and "idle", which refuses, has
// moved to the other of two addresses. Without the former a Service or an
// EndpointSlice is still missing, without the latter a removal.
type marks struct {
	// turn counts the scenarios.
	turn int
	// health is set if health checks, which are no rules, have to be waited for.
	health bool
}

// markerPods are the endpoints of "marker" by turns.
var markerPods = []string{"node-1-pod-2", "node-2-pod-2"}

func (m marks) pod() string        { return markerPods[m.turn%len(markerPods)] }
func (m marks) port() uint16       { return uint16(10000 + m.turn) }
func (m marks) healthPort() uint16 { return uint16(31000 + m.turn) }
func (m marks) idleHost() int      { return idleHost + m.turn%2 }
func (m marks) lastIdleHost() int  { return idleHost + (m.turn+1)%2 }

// add appends the marks' objects.
func (m marks) add(services []service) []service {
	services = append(services[:len(services):len(services)],
		service{name: fmt.Sprintf("idle-%d", m.turn%2), host: m.idleHost()})
	if m.health {
		services = append(services, service{
			name: fmt.Sprintf("marker-health-%d", m.turn), host: markerHost + 1, endpoints: at(markerPods...),
			changes: []change{func(s *corev1.Service) {
				s.Spec.Type = corev1.ServiceTypeLoadBalancer
				s.Spec.AllocateLoadBalancerNodePorts = new(false)
				s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
				s.Spec.HealthCheckNodePort = int32(m.healthPort())
			}},
		})
	}
	return append(services, service{
		name: "marker", host: markerHost, endpoints: at(m.pod()),
		changes: []change{func(s *corev1.Service) {
			for i := range s.Spec.Ports {
				s.Spec.Ports[i].Port = int32(m.port())
			}
		}},
	})
}

// objects returns all objects of a scenario, the marks last of each kind.
func (m marks) objects(topo *topology, s scenario) []runtime.Object {
	return append(nodes(topo), objects(topo, m.add(s.services))...)
}

// wait waits until both nodes have, in both families, what objects returned.
func (m marks) wait(ctx context.Context, topo *topology) error {
	return topo.onNodes(ctx, func(ctx context.Context, n *lab.Node, f model.Family) error {
		answers := func(from *lab.NS, host int, port uint16, who string) error {
			p := lab.Probe{From: from, Network: "tcp", To: netip.AddrPortFrom(clusterAddr(f, host), port), Timeout: time.Second}
			return poll(ctx, func() error {
				if r := p.Once(ctx); r.Server != who {
					return fmt.Errorf("%s: %s, want an answer of %s", p, r, who)
				}
				return nil
			})
		}
		// A node and its pods find a Service by different ways.
		for _, from := range []*lab.NS{n.NS, n.Pods[podsPerNode-1]} {
			if err := answers(from, markerHost, m.port(), m.pod()); err != nil {
				return err
			}
			if err := answers(from, m.lastIdleHost(), servicePort, outside); err != nil {
				return err
			}
		}
		if !m.health {
			return nil
		}
		return poll(ctx, func() error { return m.checkHealth(ctx, n, f) })
	})
}

// checkHealth returns an error unless the node says that it has the one local
// endpoint of the health mark.
func (m marks) checkHealth(ctx context.Context, n *lab.Node, f model.Family) error {
	at := netip.AddrPortFrom(n.Addr(f), m.healthPort())
	resp, body, err := get(ctx, n.Dial, at)
	if err != nil {
		return err
	}
	var got struct{ LocalEndpoints int }
	if err := json.Unmarshal(body, &got); err != nil || resp.StatusCode != http.StatusOK || got.LocalEndpoints != 1 {
		return fmt.Errorf("health check at %s: %s %q, want one endpoint", at, resp.Status, body)
	}
	return nil
}

// poll calls fn until it returns nil. Its error is the last of fn's.
func poll(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

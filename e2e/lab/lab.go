// SPDX-License-Identifier: Apache-2.0

// Package lab builds small networks out of network namespaces, so that rules
// can be tried with the real kernel and real packets on any Linux machine,
// without touching the machine's own network.
//
//	lan (a switch, and a gateway that drops what it is handed)
//	 │ 192.0.2.0/24, 2001:db8::/64
//	 ├── client    192.0.2.100
//	 ├── node-1    192.0.2.11 ── cni0 10.244.0.1 ──┬── node-1-pod-1 10.244.0.11
//	 │                                             └── node-1-pod-2 10.244.0.12
//	 └── node-2    192.0.2.12 ── cni0 10.244.1.1 ──── …
//
// IPv6 mirrors IPv4: 2001:db8::11 is node-1, fd00:10:244:0::11 its first pod.
// Nodes route to each other's pods. Everything else, a virtual IP without
// rules for instance, follows the default route to a gateway that silently
// drops it, and so looks like a timeout.
//
// No link, address, route or rule is ever made outside the lab's namespaces.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// Config says how large a lab is.
type Config struct {
	// Nodes is the number of nodes, at least and by default one.
	Nodes int
	// Pods is the number of pods on each node.
	Pods int
	// ClientRoutes are what the client reaches through the first node:
	// service CIDRs, pod CIDRs. Without any it reaches only node addresses.
	ClientRoutes []netip.Prefix
}

// Lab is a network of namespaces. Its methods are not safe for concurrent use;
// those of its namespaces are.
type Lab struct {
	// Nodes are the nodes in order: node-1 is Nodes[0] unless it was removed.
	Nodes []*Node
	// Client is a host next to the nodes, without pods and without rules.
	Client *NS

	prefix  string
	lan     *NS
	all     []*NS
	planned int // nodes, those that were removed included
}

// New builds a lab; the caller closes it. Labs that dead processes have left
// behind are removed first. An error leaves nothing behind.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	if err := Sweep(ctx); err != nil {
		return nil, err
	}
	prefix, err := newPrefix()
	if err != nil {
		return nil, err
	}
	l := &Lab{prefix: prefix}
	if err := l.build(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", prefix, err), l.Close())
	}
	return l, nil
}

func newPrefix() (string, error) {
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("choose lab name: %w", err)
	}
	return fmt.Sprintf("fl-%d-%s-", os.Getpid(), hex.EncodeToString(b[:])), nil
}

func (l *Lab) build(ctx context.Context, cfg Config) error {
	if err := l.addLAN(ctx); err != nil {
		return err
	}
	l.Client = planClient()
	if err := l.addHost(ctx, l.Client); err != nil {
		return err
	}
	for range max(cfg.Nodes, 1) {
		n, err := l.AddNode(ctx)
		if err != nil {
			return err
		}
		for range cfg.Pods {
			if _, err := n.AddPod(ctx); err != nil {
				return err
			}
		}
	}
	return l.RouteClient(l.Nodes[0], cfg.ClientRoutes...)
}

// RouteClient makes the client reach the prefixes through n.
func (l *Lab) RouteClient(n *Node, prefixes ...netip.Prefix) error {
	for _, p := range prefixes {
		if err := l.Client.addRoute(p, n.Addr(familyOf(p.Addr()))); err != nil {
			return err
		}
	}
	return nil
}

// Prefix is what the names of all namespaces of this lab begin with.
func (l *Lab) Prefix() string { return l.prefix }

// Close stops the echo servers and kills the processes inside the lab, and
// removes its namespaces with all that is in them. It may be called again.
func (l *Lab) Close() error {
	var errs []error
	for _, ns := range l.all {
		errs = append(errs, ns.close())
	}
	l.all = nil
	return errors.Join(errs...)
}

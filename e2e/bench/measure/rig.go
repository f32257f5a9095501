// SPDX-License-Identifier: Apache-2.0

// Package measure measures subjects: each on a node of its own, against one API
// server, with the same objects and the same changes.
//
// Every endpoint is real. One pod of the node has all addresses of the
// endpoints, so a connect to any Service is answered by a server, over a link.
package measure

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/e2e/bench/probe"
	"fairlead/e2e/bench/subject"
	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/e2e/load/workload"
	"fairlead/proxier/model"
)

// clusterCIDR has all pods: those of the lab and all endpoints.
const clusterCIDR = "10.128.0.0/9"

// The Services that are changed one by one have numbers that no plan has.
const (
	edgeService = 60000 + iota // goes from no endpoint to one and back
	pairService                // goes from one endpoint to two and back
)

// The numbers of their endpoints, which no plan has.
const (
	edgeEndpoint = 4_000_000 + iota
	stayEndpoint
	leaveEndpoint
)

// leavePort is the target port of pairService. The pod has a server on it, but
// only on the address of stayEndpoint: the other one refuses, and so shows
// which of the two a connect came to.
const leavePort = 8081

// Rig is an API server and the network it is in.
type Rig struct {
	lab     *lab.Lab
	cluster *cluster.Cluster
	writer  *workload.Writer
	// bare is a node without rules.
	bare *node
	dir  string
	// loaded is how many Services there are.
	loaded int
	tools  map[lab.Variant]string
}

// node is a node whose pod is all endpoints.
type node struct {
	subject.Node
	servers []*probe.Server
}

// client connects from the node.
func (n *node) client() probe.Client { return probe.Client{NS: n.NS} }

// NewRig starts an API server for Services with so many endpoints. dir, which
// exists, receives logs and what is recorded.
func NewRig(ctx context.Context, dir string, endpoints int) (r *Rig, err error) {
	r = &Rig{dir: dir, tools: map[lab.Variant]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.lab, err = lab.New(ctx, lab.Config{Nodes: 1, Pods: 1}); err != nil { // the node is bare
		return r, err
	}
	plan := workload.DefaultPlan()
	plan.Services, plan.Endpoints = 0, endpoints
	r.cluster, err = cluster.Start(ctx, cluster.Config{
		Address:      r.lab.Client.Addr(model.IPv4),
		ServiceCIDRs: []netip.Prefix{plan.ServiceCIDR, netip.MustParsePrefix("fd00:10:96::/112")},
		Prefix:       []string{"nsenter", "--net=" + r.lab.Client.Path()},
		Dial:         r.lab.Client.Dial,
	})
	if err != nil {
		return r, err
	}
	client, err := workload.NewClient(r.cluster.RESTConfig())
	if err != nil {
		return r, fmt.Errorf("make client: %w", err)
	}
	r.writer = &workload.Writer{Client: client, Plan: plan, Workers: workers()}
	r.bare = &node{Node: subject.Node{Node: r.lab.Nodes[0]}}
	if err := r.bare.serve(plan); err != nil {
		return r, err
	}
	if err := r.writer.Namespace(ctx); err != nil {
		return r, err
	}
	return r, r.addSingles(ctx)
}

// workers is how many objects are written at a time. With one processor, as in User-Mode
// Linux, more would only wait, until the API server gives them up.
func workers() int {
	if runtime.NumCPU() == 1 {
		return 4
	}
	return 32
}

// addSingles makes the Services that are changed one by one.
func (r *Rig) addSingles(ctx context.Context) error {
	for _, s := range []workload.Service{{Number: edgeService}, {Number: pairService, Endpoints: []int{stayEndpoint}}} {
		if err := r.single(s.Number).Apply(ctx, workload.Change{Kind: workload.Add, After: &s}); err != nil {
			return err
		}
	}
	return nil
}

// single returns the writer of such a Service.
func (r *Rig) single(number int) *workload.Writer {
	w := *r.writer
	if number == pairService {
		w.Plan.TargetPort = leavePort
	}
	return &w
}

// Close ends everything and removes it.
func (r *Rig) Close() error {
	var errs []error
	if r.bare != nil {
		for _, l := range r.bare.servers {
			errs = append(errs, l.Close())
		}
	}
	if r.cluster != nil {
		errs = append(errs, r.cluster.Stop())
	}
	if r.lab != nil {
		errs = append(errs, r.lab.Close())
	}
	return errors.Join(errs...)
}

// Load brings the number of Services up to n. It never goes down.
func (r *Rig) Load(ctx context.Context, n int, progress func(done int)) error {
	r.writer.Plan.Services = n
	if err := r.writer.Plan.Validate(); err != nil {
		return err
	}
	if err := r.writer.Create(ctx, r.loaded, n, progress); err != nil {
		return err
	}
	r.loaded = n
	return nil
}

// plan is what is loaded.
func (r *Rig) plan() workload.Plan { return r.writer.Plan }

// serve makes a pod of the node all endpoints.
func (n *node) serve(plan workload.Plan) error {
	pod := n.Pods[0]
	if err := n.ServeRange(pod, plan.EndpointCIDR); err != nil {
		return err
	}
	for _, at := range []netip.AddrPort{
		netip.AddrPortFrom(netip.IPv4Unspecified(), plan.TargetPort),
		netip.AddrPortFrom(plan.Endpoint(stayEndpoint), leavePort),
	} {
		l, err := probe.Serve(pod, at)
		if err != nil {
			return err
		}
		n.servers = append(n.servers, l)
	}
	return nil
}

// newNode makes a node without rules, known to the API server, for subjects that
// use a variant.
func (r *Rig) newNode(ctx context.Context, v lab.Variant) (*node, error) {
	tools, err := r.toolsFor(v)
	if err != nil {
		return nil, err
	}
	made, err := r.lab.AddNode(ctx)
	if err != nil {
		return nil, err
	}
	n := &node{Node: subject.Node{
		Node: made, Variant: v, Kubeconfig: r.cluster.Kubeconfig(), ClusterCIDR: clusterCIDR,
		Tools: tools, Log: filepath.Join(r.dir, made.Label+".log"),
	}}
	if _, err = made.AddPod(ctx); err == nil {
		err = n.serve(r.plan())
	}
	if err == nil {
		err = n.forgetClients()
	}
	if err == nil {
		err = r.register(ctx, made)
	}
	if err != nil {
		return nil, errors.Join(err, r.removeNode(ctx, n))
	}
	return n, nil
}

// forgetClients makes sure that no connect meets what connection tracking
// remembers of an earlier one: one that came while there were no rules, say, and
// that would be translated as little as that. A client that connects thousands of
// times in a second has the same port again soon.
func (n *node) forgetClients() error {
	return errors.Join(
		n.SetSysctl("net/netfilter/nf_conntrack_tcp_timeout_syn_sent", "1"),
		n.SetSysctl("net/netfilter/nf_conntrack_tcp_timeout_close", "1"),
		n.SetSysctl("net/ipv4/ip_local_port_range", "1024 65535"))
}

// removeNode removes a node with its rules and with what runs there, also after
// an interrupt.
func (r *Rig) removeNode(ctx context.Context, n *node) error {
	var errs []error
	for _, l := range n.servers {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, r.lab.RemoveNode(context.WithoutCancel(ctx), n.Node.Node))...)
}

// register makes the Node object, from which subjects take the node's address.
func (r *Rig) register(ctx context.Context, n *lab.Node) error {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Label},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: n.Addr(model.IPv4).String()},
		}},
	}
	nodes := r.cluster.Clientset().CoreV1().Nodes()
	made, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("register node: %w", err)
	}
	made.Status = node.Status
	if _, err := nodes.UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("register node: %w", err)
	}
	return nil
}

// toolsFor makes the directory of a variant's commands once.
func (r *Rig) toolsFor(v lab.Variant) (string, error) {
	if dir := r.tools[v]; dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp(r.dir, "tools-")
	if err != nil {
		return "", fmt.Errorf("make directory of commands: %w", err)
	}
	if err := v.Link(dir); err != nil {
		return "", err
	}
	r.tools[v] = dir
	return dir, nil
}

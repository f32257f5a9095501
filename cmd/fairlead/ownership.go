// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/proxier"
	"fairlead/proxier/model"
)

// What an agent may own in a family.
const (
	ownsServices      = "services"
	ownsHostPorts     = "hostPorts"
	ownsPodMasquerade = "podMasquerade"
)

// ownership tells what of a node's NAT this agent does: in a file for others on the
// node, in the log, and in a metric. The file stays when the agent ends, as the rules
// do.
type ownership struct {
	path  string // empty for no file
	gauge *prometheus.GaugeVec

	mu    sync.Mutex
	state ownedState
}

// ownedState is the content of the file. Its fields are not renamed: programs of
// others read them.
type ownedState struct {
	Version  string                      `json:"version"`
	Families map[string]map[string]owned `json:"families"`
}

type owned struct {
	Owned bool `json:"owned"`
	// Reason says why not.
	Reason string `json:"reason,omitempty"`
}

func newOwnership(path string, families []model.Family, reg prometheus.Registerer) *ownership {
	o := &ownership{
		path: path, state: ownedState{Version: buildVersion(), Families: map[string]map[string]owned{}},
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "fairlead_owned",
			Help: "Whether the agent does a part of the node's NAT (1), or leaves it to others or to nobody (0).",
		}, []string{"ip_family", "part"}),
	}
	reg.MustRegister(o.gauge)
	for _, f := range families {
		for _, part := range []string{ownsServices, ownsHostPorts, ownsPodMasquerade} {
			o.gauge.WithLabelValues(f.String(), part)
		}
	}
	return o
}

// of returns a function that notes whether a part is owned in a family, and why not.
func (o *ownership) of(ctx context.Context, f model.Family, part string) func(is bool, reason string) {
	return func(is bool, reason string) {
		if is {
			reason = ""
		}
		if err := o.set(ctx, f, part, owned{is, reason}); err != nil {
			klog.FromContext(ctx).Error(err, "Cannot tell others on the node what this agent does; name another file with --state-file, or none")
		}
	}
}

func (o *ownership) set(ctx context.Context, f model.Family, part string, now owned) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	parts := o.state.Families[f.String()]
	if parts == nil {
		parts = map[string]owned{}
		o.state.Families[f.String()] = parts
	}
	if before, known := parts[part]; known && before == now {
		return nil
	}
	parts[part] = now
	klog.FromContext(ctx).Info("Decided what this agent does", "ipFamily", f, "part", part, "does", now.Owned, "reason", now.Reason)
	value := 0.
	if now.Owned {
		value = 1
	}
	o.gauge.WithLabelValues(f.String(), part).Set(value)
	return o.write()
}

// write replaces the file in one step.
func (o *ownership) write() error {
	if o.path == "" {
		return nil
	}
	text, err := json.MarshalIndent(o.state, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", o.path, err)
	}
	dir := filepath.Dir(o.path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".state-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(text, '\n'))
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), o.path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// removeState removes the file, if it is there.
func removeState(path string) error {
	if err := os.Remove(path); path != "" && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// servicesOwned notes that Services are, once they are.
type servicesOwned struct{ owned func(bool, string) }

var _ proxier.Follower = servicesOwned{}

// Follow implements proxier.Follower.
func (s servicesOwned) Follow(context.Context, proxier.Desired) error {
	s.owned(true, "")
	return nil
}

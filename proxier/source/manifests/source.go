// SPDX-License-Identifier: Apache-2.0

// Package manifests is the source that reads objects from a directory of
// Kubernetes manifests and follows its changes.
//
// It reads the files whose names end in .yaml, .yml or .json and do not start
// with a dot, in no subdirectory, and follows symbolic links, as a mounted
// ConfigMap needs it. A file holds any number of Services, EndpointSlices,
// ServiceCIDRs, Pods, Nodes and lists of them.
//
// What it never does is to take a file that makes no sense for a file that
// holds nothing: the last good content stays in use, and objects of a file that
// never made sense are not known to be gone.
package manifests

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"fairlead/proxier/source"
)

const (
	// quiet is the pause in a series of events after which they are looked
	// into: who writes one file often writes another.
	quiet = 15 * time.Millisecond
	// maxWait bounds how long a series of events can put that off.
	maxWait = 50 * time.Millisecond
	// lookPeriod is how often the directory is looked through without an
	// event, in case one got lost; blindPeriod where none can come.
	lookPeriod  = 10 * time.Second
	blindPeriod = time.Second
)

// Config says what to read.
type Config struct {
	// Dir is the directory. It need not be there yet.
	Dir string
	// NodeName is the name of the Node that the agent runs on. Other Nodes, and
	// Pods on them, are ignored.
	NodeName string
	// Policy says which external addresses Services may have.
	Policy source.Policy
	// Metrics and FileMetrics may be nil.
	Metrics     *source.Metrics
	FileMetrics *Metrics
}

// Source reads objects from a directory.
type Source struct {
	config Config
}

var _ source.Source = (*Source)(nil)

// New returns a Source. It reads nothing before Run.
func New(config Config) (*Source, error) {
	switch {
	case config.Dir == "":
		return nil, errors.New("make manifests source: no directory")
	case config.NodeName == "":
		return nil, errors.New("make manifests source: no node name")
	}
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("make manifests source: %w", err)
	}
	config.Dir = dir
	return &Source{config: config}, nil
}

// Run delivers the objects in the directory and their changes to sink until ctx
// is done, and returns nil. Everything that is found at a time is one step.
//
// The status is listed once the directory was read as a whole, and stays so. It
// is complete while the directory is there and holds no file that never made
// sense since Run began. A Node is delivered where there is a manifest for it,
// and one of which only the name is known once there is none any more.
func (s *Source) Run(ctx context.Context, sink source.Sink) error {
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithName("manifests"))
	w := newWatcher(ctx, s.config.Dir)
	defer w.close()
	// It has never looked, so the first pass is due at once.
	r := &runner{sink: sink, directory: newDirectory(s.config), watcher: w}
	for {
		wake := time.NewTimer(time.Until(r.wakeAt()))
		select {
		case <-ctx.Done():
			wake.Stop()
			return nil
		case event := <-w.events():
			r.note(event.Name, time.Now())
		case <-w.errors():
			// Events got lost.
			r.pending.add(anything, "", time.Now())
		case <-wake.C:
			r.pass(ctx, time.Now())
		}
		wake.Stop()
	}
}

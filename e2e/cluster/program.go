// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"syscall"
)

// Program is one more program of a cluster.
type Program struct {
	// Argv is its command line. A name without a slash is looked for beside the API
	// server's.
	Argv []string
	// Prefix is put before it in the place of the cluster's, unless it is nil.
	Prefix []string
	// Dir, below that of the cluster, has its log and is its working directory.
	Dir string
	// Ready fails as long as the program is not ready. Nil means that it is at once.
	Ready func(context.Context) error
}

// Launch starts a program and waits until it is ready. It runs until Stop, or until the
// function that is returned ends it, which asks it to and waits.
func (c *Cluster) Launch(ctx context.Context, p Program) (end func() error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir, err := makeDir(filepath.Join(c.dir, p.Dir))
	if err != nil {
		return nil, err
	}
	argv := append([]string(nil), p.Argv...)
	if filepath.Base(argv[0]) == argv[0] {
		argv[0] = filepath.Join(filepath.Dir(c.bin.apiServer), argv[0])
	}
	prefix := p.Prefix
	if prefix == nil {
		prefix = c.cfg.Prefix
	}
	proc, err := startProcess(dir, argv, prefix)
	if err != nil {
		return nil, err
	}
	c.more = append(c.more, proc)
	if p.Ready != nil {
		err = c.await(ctx, proc, p.Ready)
	}
	return func() error { return c.end(proc) }, err
}

// end asks a program of Launch to end, and waits until it has.
func (c *Cluster) end(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.more = slices.DeleteFunc(c.more, func(q *process) bool { return q == p })
	err := p.signal(syscall.SIGTERM)
	<-p.exited
	return err
}

// stopMoreLocked kills the programs of Launch, the last one first; c.mu must be held.
func (c *Cluster) stopMoreLocked() error {
	var err error
	for _, p := range slices.Backward(c.more) {
		err = errors.Join(err, p.kill())
	}
	c.more = nil
	return err
}

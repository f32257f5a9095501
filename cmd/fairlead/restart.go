// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/config"
	"fairlead/internal/dirwatch"
)

// errRestart is why the agent ended where it is to start anew, in the same process.
var errRestart = errors.New("restart with a changed configuration")

// restart makes the process a new agent, with the command line of this one. The rules
// stay, and a start writes only what differs, so that is all that a changed
// configuration takes.
func restart() error {
	err := syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	return fmt.Errorf("start anew with a changed configuration: %w", err)
}

// recheck is how often the configuration is read where nothing tells of a change: by a
// link, it may be in a directory that is not watched.
const recheck = 30 * time.Second

// reloader watches the configuration file.
type reloader struct {
	line    *config.CommandLine
	running *agentConfig
	path    string
	// rehearse tells why an agent that starts with other settings would not do.
	rehearse func(ctx context.Context, cfg, running *agentConfig) error
	refused  prometheus.Gauge
	// told is the last error that the log has.
	told string
}

func newReloader(line *config.CommandLine, running *agentConfig, reg prometheus.Registerer) *reloader {
	r := &reloader{line: line, running: running, path: running.File, rehearse: rehearse, refused: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "fairlead_config_refused",
		Help: "Whether the configuration file has changed to one that makes no sense or is impossible on this node (1), so that the one before holds.",
	})}
	reg.MustRegister(r.refused)
	return r
}

// run returns errRestart once the file says something else that is possible. It returns
// nil when ctx is done.
func (r *reloader) run(ctx context.Context) error {
	if r.path == "" {
		return nil
	}
	signs := dirwatch.New(r.path)
	defer signs.Close()
	for {
		changed, err := r.changed(ctx)
		r.tell(ctx, err)
		if changed {
			klog.FromContext(ctx).Info("The configuration has changed, starting anew; the rules stay in place", "file", r.path)
			return errRestart
		}
		if signs.Await(ctx, recheck); ctx.Err() != nil {
			return nil
		}
	}
}

// changed tells whether the file says something else that makes sense and is possible on
// this node.
func (r *reloader) changed(ctx context.Context) (bool, error) {
	s, _, err := r.line.Load()
	if err != nil {
		return false, err
	}
	if s.Equal(r.running.Settings) {
		return false, nil
	}
	cfg, err := check(s)
	if err == nil {
		err = r.rehearse(ctx, cfg, r.running)
	}
	return err == nil, err
}

// tell tells of a file that makes no sense or is impossible, once.
func (r *reloader) tell(ctx context.Context, err error) {
	if err == nil {
		r.refused.Set(0)
		r.told = ""
		return
	}
	r.refused.Set(1)
	if text := err.Error(); text != r.told {
		r.told = text
		klog.FromContext(ctx).Error(err, "Refused the changed configuration, the one before holds")
	}
}

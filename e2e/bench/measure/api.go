// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"fmt"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"fairlead/e2e/bench/report"
)

// apiFloor measures what of a change is the API server's alone: from just before a
// write until a client that only watches is told of it. No subject runs meanwhile.
func (r *Rig) apiFloor(ctx context.Context, cfg Config) (f *report.Floor, err error) {
	cfg.Log("floor")
	slices := r.writer.Client.DiscoveryV1().EndpointSlices(r.plan().Namespace)
	list, err := slices.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("list EndpointSlices: %w", err)
	}
	w, err := slices.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return nil, fmt.Errorf("watch EndpointSlices: %w", err)
	}
	defer w.Stop()
	var added, removed []time.Duration
	for range cfg.Samples {
		for _, step := range []struct {
			awaited
			to *[]time.Duration
		}{{edge().add(), &added}, {edge().remove(), &removed}} {
			start := time.Now()
			if err := r.single(step.Number()).Apply(ctx, step.Change); err != nil {
				return nil, err
			}
			at, err := heard(ctx, w, len(step.After.Endpoints))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", step.Change, err)
			}
			took := at.Sub(start)
			*step.to = append(*step.to, took)
			if err := rest(ctx, took); err != nil {
				return nil, err
			}
		}
	}
	return &report.Floor{AddedMS: report.NewDist(added, time.Millisecond), RemovedMS: report.NewDist(removed, time.Millisecond)}, nil
}

// heard waits for the next EndpointSlice that is told of and has so many endpoints; one
// that is deleted has none.
func heard(ctx context.Context, w watch.Interface, endpoints int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, effectTime)
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				return time.Time{}, fmt.Errorf("the watch of EndpointSlices ended: %v", e.Object)
			}
			s, _ := e.Object.(*discoveryv1.EndpointSlice)
			if s == nil {
				continue
			}
			if e.Type == watch.Deleted {
				s.Endpoints = nil
			}
			if len(s.Endpoints) == endpoints {
				return time.Now(), nil
			}
		}
	}
}

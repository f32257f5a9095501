// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
)

// get asks a URL from a node. An answer other than 200 is an error, beside its body.
func get(ctx context.Context, n *lab.Node, url string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return n.Dial(ctx, network, addr)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, text)
	}
	return string(text), err
}

// healthy asks the service proxy of a node, whichever it is.
func healthy(ctx context.Context, n *lab.Node) error {
	_, err := get(ctx, n, "http://127.0.0.1:10256/healthz")
	return err
}

// serviceURL is that of a Service at its cluster IP.
func serviceURL(svc *corev1.Service) string {
	return "http://" + net.JoinHostPort(svc.Spec.ClusterIP, "80") + "/"
}

// awaitAll waits until all pods of web have answered at its cluster IP, asked from each
// node.
func (f *fixture) awaitAll(ctx context.Context, svc *corev1.Service) {
	f.t.Helper()
	for _, n := range f.lab.Nodes {
		awaitPods(ctx, f.t, n, svc, len(f.lab.Nodes))
	}
}

func awaitPods(ctx context.Context, t *testing.T, n *lab.Node, svc *corev1.Service, pods int) {
	t.Helper()
	seen := map[string]bool{}
	await(ctx, t, "answers of all pods on "+n.Label, func() error {
		ask, cancel := context.WithTimeout(ctx, 300*time.Millisecond) // nobody answers before there are rules
		defer cancel()
		name, err := get(ask, n, serviceURL(svc))
		if err != nil {
			return err
		}
		if seen[name] = true; len(seen) < pods {
			return fmt.Errorf("%v have answered", seen)
		}
		return nil
	})
}

// since is a time to log or compare.
func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

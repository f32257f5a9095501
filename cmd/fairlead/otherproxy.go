// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// proxyPort is where the /healthz of a service proxy is, kube-proxy's and this agent's.
const proxyPort = "10256"

// metricsAddress is where a service proxy says which mode it is in, unless told otherwise.
const metricsAddress = "127.0.0.1:10249"

// loopbackProxies are where a service proxy of this node answers.
func loopbackProxies() []string {
	return []string{net.JoinHostPort("127.0.0.1", proxyPort), net.JoinHostPort("::1", proxyPort)}
}

// refuseBeside returns an error if something takes connections at one of the addresses.
// One that takes them and does not answer is a proxy, too.
func refuseBeside(ctx context.Context, addrs []string) error {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, addr := range addrs {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			continue
		}
		conn.Close()
		return fmt.Errorf("a service proxy runs on this node: http://%s/healthz %s; stop it first, or its rules are removed under it and come back; "+
			"with --force they are removed all the same, and where kube-proxy has taken over, --keep=MODE --force leaves its rules in that mode and removes all else", addr, answer(ctx, addr))
	}
	return nil
}

// answer says in words what a proxy says of itself.
func answer(ctx context.Context, addr string) string {
	resp, err := get(ctx, "http://"+addr+"/healthz")
	if err != nil {
		return "takes connections, and does not answer"
	}
	resp.Body.Close()
	return "answers " + resp.Status
}

// refuseOtherMode returns an error if a service proxy says at addr, where its metrics are,
// that it is in another mode than the one whose rules are to stay.
func refuseOtherMode(ctx context.Context, keep, addr string) error {
	const patience, atMost = 2 * time.Second, 64
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	url := "http://" + addr + "/proxyMode"
	resp, err := get(ctx, url)
	if err != nil { // it may have its metrics elsewhere
		return nil
	}
	defer resp.Body.Close()
	mode, err := io.ReadAll(io.LimitReader(resp.Body, atMost))
	if err != nil || resp.StatusCode != http.StatusOK || string(mode) == keep {
		return nil
	}
	return fmt.Errorf("--keep=%s: the service proxy on this node is in another mode: %s answers %q; nothing is removed", keep, url, mode)
}

func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy of the environment
	return client.Do(req)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// proxyPort is where the /healthz of a service proxy is, kube-proxy's and this agent's.
const proxyPort = "10256"

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
			"with --force they are removed all the same, and where kube-proxy has taken over, --only=nat,portmap --force removes what it does not do", addr, answer(ctx, addr))
	}
	return nil
}

// answer says in words what a proxy says of itself.
func answer(ctx context.Context, addr string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", nil)
	if err != nil {
		return "cannot be asked"
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy of the environment
	resp, err := client.Do(req)
	if err != nil {
		return "takes connections, and does not answer"
	}
	resp.Body.Close()
	return "answers " + resp.Status
}

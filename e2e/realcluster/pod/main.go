// SPDX-License-Identifier: Apache-2.0

// Command pod is what runs in the pods of e2e/realcluster: without arguments it waits
// until it is told to end, as the container that holds a pod's namespaces. With an
// address it answers HTTP requests there: /lookup?name=…&network=… with the addresses that
// the pod's resolver finds by one protocol, udp or tcp.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if len(os.Args) == 2 {
		http.HandleFunc("/lookup", lookup)
		go func() { fmt.Fprintln(os.Stderr, http.ListenAndServe(os.Args[1], nil)); stop() }()
	}
	<-ctx.Done()
}

func lookup(w http.ResponseWriter, r *http.Request) {
	network := r.FormValue("network")
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, server string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}}
	addrs, err := resolver.LookupHost(r.Context(), r.FormValue("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprint(w, strings.Join(addrs, " "))
}

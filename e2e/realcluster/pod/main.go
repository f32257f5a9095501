// SPDX-License-Identifier: Apache-2.0

// Command pod is what runs in the pods of e2e/realcluster: without arguments it waits
// until it is told to end, as the container that holds a pod's namespaces; with an
// address it answers HTTP requests there with the pod's name.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if len(os.Args) == 2 {
		name, err := os.Hostname()
		if err != nil {
			name = err.Error()
		}
		srv := &http.Server{Addr: os.Args[1], Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })}
		go func() { fmt.Fprintln(os.Stderr, srv.ListenAndServe()); stop() }()
	}
	<-ctx.Done()
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestRefuseBeside(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	closed := listen()
	closed.Close()
	if err := refuseBeside(t.Context(), []string{closed.Addr().String()}); err != nil {
		t.Errorf("where nobody listens: %v", err)
	}

	healthy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	defer healthy.Close()
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer sick.Close()
	mute := listen() // never accepts; the kernel does
	for _, tc := range []struct{ name, addr, want string }{
		{"healthy", healthy.Listener.Addr().String(), "answers 200 OK"},
		{"sick", sick.Listener.Addr().String(), "answers 503 Service Unavailable"},
		{"mute", mute.Addr().String(), "takes connections, and does not answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := refuseBeside(t.Context(), []string{closed.Addr().String(), tc.addr})
			if err == nil || !strings.Contains(err.Error(), tc.addr) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "--force") || !strings.Contains(err.Error(), "--keep=MODE --force") {
				t.Errorf("got %v, want it to name %s, to say that it %s, --force, and --keep", err, tc.addr, tc.want)
			}
		})
	}
}

func TestRemoveParts(t *testing.T) {
	all := removal{services: true, nat: true, portmap: true}
	for _, tc := range []struct {
		name string
		only []string
		want removal
		bad  bool
	}{
		{name: "none is all", want: all},
		{name: "each", only: []string{"services", "nat", "portmap"}, want: all},
		{name: "some", only: []string{"nat", "portmap"}, want: removal{nat: true, portmap: true}},
		{name: "unknown", only: []string{"nat", "host-ports"}, bad: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := removeParts(tc.only, nil)
			if tc.bad {
				if err == nil || !strings.Contains(err.Error(), `"host-ports"`) || !strings.Contains(err.Error(), "services, nat or portmap") {
					t.Errorf("got %v, want an error that names the value and what there is", err)
				}
				return
			}
			if err != nil || got.services != tc.want.services || got.nat != tc.want.nat || got.portmap != tc.want.portmap {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
			}
		})
	}
}

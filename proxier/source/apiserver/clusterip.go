// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// ErrClusterIP says that the API server was to be reached by its own Service.
var ErrClusterIP = errors.New("this agent programs that Service itself, and after a reboot nothing leads there before it has reached the API server; " +
	"name an address of the API server, or of a load balancer in front, in the kubeconfig, with --master, or in a pod by KUBERNETES_SERVICE_HOST")

// refuseClusterIP returns an error if the URL of an API server is the Service kubernetes.
// That is known by its name, by the CIDRs of cluster IPs as far as these are known before
// anything can be asked, and by what the kubelet tells each pod of that Service: the
// address in KUBERNETES_PORT stays the cluster IP where KUBERNETES_SERVICE_HOST was set
// to another one.
func refuseClusterIP(server string, serviceCIDRs []netip.Prefix, env func(string) string) error {
	host := hostOf(server)
	name := strings.TrimSuffix(host, ".")
	if name == "kubernetes.default" || strings.HasPrefix(name, "kubernetes.default.svc") {
		return fmt.Errorf("API server %s is the name of the Service kubernetes: %w", server, ErrClusterIP)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil { // a name, which somebody resolves
		return nil
	}
	if own, err := netip.ParseAddr(hostOf(env("KUBERNETES_PORT"))); err == nil && own.Unmap() == addr.Unmap() {
		return fmt.Errorf("API server %s is the cluster IP of the Service kubernetes: %w", server, ErrClusterIP)
	}
	if i := slices.IndexFunc(serviceCIDRs, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) }); i >= 0 {
		return fmt.Errorf("API server %s is a cluster IP, in %s: %w", server, serviceCIDRs[i], ErrClusterIP)
	}
	return nil
}

// hostOf returns the host of a URL, or of an address with or without a port, as
// client-go takes them.
func hostOf(server string) string {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

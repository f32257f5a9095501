// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"fairlead/proxier/model"
)

const (
	servicePort = 80
	podPort     = 8080
)

// vip is the Service's cluster IP of a family.
func vip(f model.Family) netip.AddrPort {
	if f == model.IPv4 {
		return netip.MustParseAddrPort("10.96.0.10:80")
	}
	return netip.MustParseAddrPort("[fd00:10:96::10]:80")
}

const serviceYAML = `apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: default
spec:
  type: ClusterIP
  clusterIP: 10.96.0.10
  clusterIPs: ["10.96.0.10", "fd00:10:96::10"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: http, protocol: TCP, port: %d, targetPort: %d}
`

const sliceYAML = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-%s
  namespace: default
  labels: {kubernetes.io/service-name: web}
addressType: %s
ports:
- {name: http, protocol: TCP, port: %d}
endpoints:%s
`

const endpointYAML = `
- addresses: ["%s"]
  conditions: {ready: true, serving: true, terminating: false}
  nodeName: node-1`

// writeService writes the Service's manifest.
func (d *demo) writeService() error {
	return replaceFile(filepath.Join(d.manifests, "service.yaml"), fmt.Sprintf(serviceYAML, servicePort, podPort))
}

// writeEndpoints writes an EndpointSlice of each family that names the first
// count backends.
func (d *demo) writeEndpoints(count int) error {
	for _, f := range model.Families() {
		var list strings.Builder
		for _, pod := range d.backends()[:count] {
			fmt.Fprintf(&list, endpointYAML, pod.Addr(f))
		}
		if count == 0 {
			list.WriteString(" []")
		}
		name := strings.ToLower(f.String())
		text := fmt.Sprintf(sliceYAML, name, f, podPort, list.String())
		if err := replaceFile(filepath.Join(d.manifests, name+".yaml"), text); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile replaces a file in one step, so that no reader sees half of it.
func replaceFile(path, text string) error {
	next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".next")
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("replace manifest: %w", err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Write writes all settings to a file, which a later agent can be given, and a
// kube-proxy too: it reads the first document alone.
func (s *Settings) Write(file string) error {
	text, err := s.encode()
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		return fmt.Errorf("--write-config-to: %w", err)
	}
	return nil
}

func (s *Settings) encode() ([]byte, error) {
	defaults := Default().all()
	for i, row := range s.all() {
		if row.in != commandLine && row.zeroIsDefault && row.isZero() && !defaults[i].isZero() {
			return nil, fmt.Errorf("%s is empty, and a file cannot say so: there, that stands for the default", s.Where(row.name()))
		}
	}
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	for _, which := range []document{kubeProxy, fairlead} {
		if err := e.Encode(s.document(which)); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), e.Close()
}

// document returns one as maps in maps.
func (s *Settings) document(which document) map[string]any {
	version := kubeProxyVersion
	if which == fairlead {
		version = fairleadVersion
	}
	doc := map[string]any{"apiVersion": version, "kind": kindOf(which)}
	for _, row := range s.all() {
		if row.in != which {
			continue
		}
		at, names := doc, strings.Split(row.field, ".")
		for _, name := range names[:len(names)-1] {
			if at[name] == nil {
				at[name] = map[string]any{}
			}
			at = at[name].(map[string]any)
		}
		at[names[len(names)-1]] = row.encode()
	}
	return doc
}

// Documents returns what a file would say, by API group, for /configz.
func (s *Settings) Documents() map[string]any {
	return map[string]any{"kubeproxy.config.k8s.io": s.document(kubeProxy), "fairlead.io": s.document(fairlead)}
}

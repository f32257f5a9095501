// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
)

func TestPlugins(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	const list = `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","ipMasq":true},{"type":"portmap","capabilities":{"portMappings":true}}]}`
	for _, tt := range []struct {
		name string
		dir  fs.FS
		want string
	}{
		{"no directory", nil, ""},
		{"an empty one", fstest.MapFS{}, ""},
		{"a list", fstest.MapFS{"10-a.conflist": file(list)}, "10-a.conflist: bridge ipMasq, portmap portMappings"},
		{"a single plugin", fstest.MapFS{"10-a.conf": file(`{"type":"ptp"}`)}, "10-a.conf: ptp"},
		{"the first by name", fstest.MapFS{"20-b.conflist": file(list), "10-a.json": file(`{"type":"ptp"}`)}, "10-a.json: ptp"},
		{"files that are none", fstest.MapFS{"00-a.conf": file("{"), "01-b.conf": file("{}"), "02-c.txt": file(`{"type":"x"}`), "20-b.conflist": file(list)}, "20-b.conflist: bridge ipMasq, portmap portMappings"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name, plugins := Plugins(tt.dir)
			var texts []string
			for _, p := range plugins {
				text := p.Type
				if p.IPMasq {
					text += " ipMasq"
				}
				if p.Capabilities["portMappings"] {
					text += " portMappings"
				}
				texts = append(texts, text)
			}
			got := strings.TrimSuffix(name+": "+strings.Join(texts, ", "), ": ")
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

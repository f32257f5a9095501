// SPDX-License-Identifier: Apache-2.0

// Package cni reads which CNI plugins wire the node's pods.
package cni

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"
)

// Plugin is a plugin as a configuration has it.
type Plugin struct {
	Type string `json:"type"`
	// Capabilities are what the runtime is to tell the plugin: portMappings, for
	// example.
	Capabilities map[string]bool `json:"capabilities"`
	// IPMasq is set where the plugin masquerades what its pods send to the outside.
	IPMasq bool `json:"ipMasq"`
}

// configuration is a list of plugins, or a single one.
type configuration struct {
	Plugin
	Plugins []Plugin `json:"plugins"`
}

// Plugins returns the plugins of the configuration in a directory that runtimes use,
// the first file, by name, that they can read; and its name. There are none where there
// is no such file. The directory may be nil.
func Plugins(dir fs.FS) (file string, plugins []Plugin) {
	if dir == nil {
		return "", nil
	}
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return "", nil
	}
	for _, e := range entries {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(e.Name())) {
			continue
		}
		if plugins, err := read(dir, e.Name()); err == nil {
			return e.Name(), plugins
		}
	}
	return "", nil
}

func read(dir fs.FS, name string) ([]Plugin, error) {
	text, err := fs.ReadFile(dir, name)
	if err != nil {
		return nil, err
	}
	var c configuration
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, err
	}
	if len(c.Plugins) == 0 && c.Type != "" {
		return []Plugin{c.Plugin}, nil
	}
	if len(c.Plugins) == 0 {
		return nil, errors.New("no plugin")
	}
	return c.Plugins, nil
}

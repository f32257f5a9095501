// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The documents of a file.
const (
	kubeProxyVersion = "kubeproxy.config.k8s.io/v1alpha1"
	kubeProxyKind    = "KubeProxyConfiguration"
	fairleadVersion  = "fairlead.io/v1alpha1"
	fairleadKind     = "FairleadConfiguration"
)

// decoder reads a file into Settings.
type decoder struct {
	file     string
	into     *Settings
	warnings []string
}

// decode reads the text of a file into settings. As with kube-proxy, fields that are
// unknown or there twice are a warning, and a value that makes no sense is an error.
// Both name file, line and field.
func decode(file string, text []byte, into *Settings) (warnings []string, err error) {
	d := &decoder{file: file, into: into}
	seen := map[document]int{}
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: %s", file, strings.TrimPrefix(oneLine(err), "yaml: "))
		}
		if len(doc.Content) == 0 || doc.Content[0].ShortTag() == "!!null" { // between two lines of ---
			continue
		}
		root := resolve(doc.Content[0])
		which, err := d.which(root)
		if err != nil {
			return nil, err
		}
		if line := seen[which]; line > 0 {
			return nil, d.errorf(root, "a second %s; the first one is at line %d", kindOf(which), line)
		}
		seen[which] = root.Line
		if err := d.document(root, which); err != nil {
			return nil, err
		}
	}
	if len(seen) == 0 {
		return nil, fmt.Errorf("%s: it has no document; begin with apiVersion: %s and kind: %s", file, kubeProxyVersion, kubeProxyKind)
	}
	return d.warnings, nil
}

func kindOf(which document) string {
	if which == fairlead {
		return fairleadKind
	}
	return kubeProxyKind
}

// which tells which document it is.
func (d *decoder) which(root *yaml.Node) (document, error) {
	if root.Kind != yaml.MappingNode {
		return 0, d.errorf(root, "it is %s, not a mapping of fields", shown(root))
	}
	var id struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
	}
	for key, value := range pairs(root) {
		switch key.Value {
		case "apiVersion":
			id.APIVersion = value.Value
		case "kind":
			id.Kind = value.Value
		}
	}
	switch {
	case id.APIVersion == kubeProxyVersion && id.Kind == kubeProxyKind:
		return kubeProxy, nil
	case id.APIVersion == fairleadVersion && id.Kind == fairleadKind:
		return fairlead, nil
	}
	return 0, d.errorf(root, "apiVersion %q and kind %q are not known; use %s and %s, or %s and %s",
		id.APIVersion, id.Kind, kubeProxyVersion, kubeProxyKind, fairleadVersion, fairleadKind)
}

// document reads one.
func (d *decoder) document(root *yaml.Node, which document) error {
	fields := map[string]*setting{}
	sections := map[string]bool{}
	all := d.into.all()
	for i := range all {
		s := &all[i]
		if s.in != which || s.field == "" {
			continue
		}
		fields[s.field] = s
		for path := s.field; strings.Contains(path, "."); {
			path = path[:strings.LastIndexByte(path, '.')]
			sections[path] = true
		}
	}
	return d.mapping(root, "", which, fields, sections)
}

// mapping reads the fields of a section.
func (d *decoder) mapping(n *yaml.Node, prefix string, which document, fields map[string]*setting, sections map[string]bool) error {
	seen := map[string]bool{}
	for key, value := range pairs(n) {
		path := prefix + key.Value
		if seen[path] {
			d.warn(key, "field %s is there twice; the last one counts", path)
		}
		seen[path] = true
		if prefix == "" && (path == "apiVersion" || path == "kind") {
			continue
		}
		var err error
		switch s := fields[path]; {
		case s != nil:
			err = d.value(key, value, s)
		case sections[path] && value.Kind == yaml.MappingNode:
			err = d.mapping(value, path+".", which, fields, sections)
		case sections[path] && isNull(value):
		case sections[path]:
			err = d.errorf(value, "%s wants fields, not %s", path, shown(value))
		default:
			d.other(key, value, path, which)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// value reads the value of a setting.
func (d *decoder) value(key, value *yaml.Node, s *setting) error {
	if isNull(value) {
		return nil
	}
	before := reflect.ValueOf(s.value).Elem().Interface()
	if err := s.decode(value); err != nil {
		return d.errorf(value, "%s %s", s.field, err)
	}
	if s.zeroIsDefault && s.isZero() {
		reflect.ValueOf(s.value).Elem().Set(reflect.ValueOf(before))
		return nil
	}
	d.into.given[s.name()] = fmt.Sprintf("%s:%d: %s", d.file, key.Line, s.field)
	return nil
}

// other deals with a field that is not in the table.
func (d *decoder) other(key, value *yaml.Node, path string, which document) {
	gone, ok := deadField(path)
	if which != kubeProxy || !ok {
		d.warn(key, "unknown field %s; it has no effect", path)
		return
	}
	if !isEmpty(value) && !slices.Contains(gone.usual, value.Value) {
		d.warn(key, "field %s has no effect: %s", path, gone.why)
	}
}

func (d *decoder) warn(at *yaml.Node, format string, args ...any) {
	d.warnings = append(d.warnings, d.errorf(at, format, args...).Error())
}

func (d *decoder) errorf(at *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", d.file, at.Line, fmt.Sprintf(format, args...))
}

// pairs yields the keys and values of a mapping.
func pairs(n *yaml.Node) func(yield func(key, value *yaml.Node) bool) {
	return func(yield func(key, value *yaml.Node) bool) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i], resolve(n.Content[i+1])) {
				return
			}
		}
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// isEmpty tells whether a value says nothing: null, zero, false, empty, or all of that
// deeper down. What kubeadm writes has every field that there is.
func isEmpty(n *yaml.Node) bool {
	switch n = resolve(n); n.Kind {
	case yaml.MappingNode:
		for _, value := range pairs(n) {
			if !isEmpty(value) {
				return false
			}
		}
		return true
	case yaml.SequenceNode:
		return !slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return !isEmpty(c) })
	}
	return slices.Contains([]string{"", "0", "0s", "false", "null", "~"}, n.Value)
}

// oneLine returns the text of an error on one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

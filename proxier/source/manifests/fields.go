// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readHeader returns what a mapping says of its type, with what is implied for
// what it does not say.
func readHeader(n *yaml.Node, implied header) (header, *problem) {
	seen := newKeySet(len(n.Content) / 2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		if key := n.Content[i]; !seen.add(resolve(key).Value) && !isMerge(key) {
			return header{}, problemf(key.Line, "key %s is there twice", quote(key.Value))
		}
	}
	head := implied
	for _, f := range []struct {
		key string
		to  *string
	}{{"apiVersion", &head.apiVersion}, {"kind", &head.kind}} {
		value := field(n, f.key)
		if value == nil {
			continue
		}
		if value = resolve(value); value.Kind != yaml.ScalarNode || value.ShortTag() != "!!str" {
			return header{}, problemf(value.Line, "%s is not a string", f.key)
		}
		*f.to = value.Value
	}
	switch {
	case head.kind == "":
		return header{}, problemf(n.Line, "the object has no kind")
	case head.apiVersion == "":
		return header{}, problemf(n.Line, "the object has no apiVersion")
	}
	return head, nil
}

// field returns the value of a mapping's key, nil where there is none.
func field(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// lineOfPath returns the line of the field at a path like "spec.ports[0].port",
// or of the innermost part of it that is there.
func lineOfPath(n *yaml.Node, path string) int {
	line := n.Line
	for path != "" {
		n = resolve(n)
		var key *yaml.Node
		switch n.Kind {
		case yaml.MappingNode:
			key, n, path = stepInto(n, path)
		case yaml.SequenceNode:
			n, path = element(n, path)
			key = n
		default:
			return line
		}
		if n == nil {
			return line
		}
		line = key.Line
		path = strings.TrimPrefix(path, ".")
	}
	return line
}

// stepInto returns the key that a path starts with, its value and the rest of
// the path. Keys may have dots, so the longest that fits is taken.
func stepInto(n *yaml.Node, path string) (key, value *yaml.Node, rest string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		after, ok := strings.CutPrefix(path, k.Value)
		if !ok || after != "" && after[0] != '.' && after[0] != '[' {
			continue
		}
		if key == nil || len(k.Value) > len(key.Value) {
			key, value, rest = k, n.Content[i+1], after
		}
	}
	return key, value, rest
}

// element returns the element that a path like "[0].port" starts with. Where the
// path leaves the number out it is the one that can be meant.
func element(n *yaml.Node, path string) (value *yaml.Node, rest string) {
	if !strings.HasPrefix(path, "[") {
		for _, e := range n.Content {
			if key, _, _ := stepInto(resolve(e), path); key == nil {
				continue
			}
			if value != nil {
				return nil, ""
			}
			value = e
		}
		return value, path
	}
	index, rest, ok := strings.Cut(strings.TrimPrefix(path, "["), "]")
	i, err := strconv.Atoi(index)
	if !ok || err != nil || i < 0 || i >= len(n.Content) {
		return nil, ""
	}
	return n.Content[i], rest
}

// decodeProblem says which value of an object does not fit, without the names
// of Go's types. The text is the object's JSON.
func decodeProblem(err error, n *yaml.Node, text []byte, marks []mark) *problem {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return problemf(n.Line, "%s", clip(oneLine(err.Error())))
	}
	line := lineOfPath(n, wrong.Field)
	if at := lastMark(marks, int(wrong.Offset)); isValueOf(wrong.Field, text[:at.offset]) {
		line = at.line
	}
	value := clip(wrong.Value)
	want := wanted(wrong.Type)
	if want == "a number" && strings.HasPrefix(value, "number") {
		return problemf(line, "%s: %s does not fit", wrong.Field, value)
	}
	return problemf(line, "%s: %s where %s is wanted", wrong.Field, value, want)
}

// isValueOf reports whether what follows the text can be the value of the last
// key in the path. Offsets in errors of types that decode themselves count from
// elsewhere.
func isValueOf(path string, before []byte) bool {
	key := path[strings.LastIndexByte(path, '.')+1:]
	return bytes.HasSuffix(before, []byte(`"`+key+`":`)) ||
		bytes.HasSuffix(before, []byte("[")) || bytes.HasSuffix(before, []byte(","))
}

func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "an object"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "another type"
}

// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// jsonReader turns JSON into the nodes that YAML is turned into, so that there
// is one way on from there. JSON is not quite YAML: surrogate pairs, for one,
// are not.
type jsonReader struct {
	decoder *json.Decoder
	ends    []int
}

// jsonDocuments returns the documents of a text, without those that are null.
func jsonDocuments(text []byte) ([]*yaml.Node, *problem) {
	r := &jsonReader{decoder: json.NewDecoder(bytes.NewReader(text)), ends: lineEnds(text)}
	r.decoder.UseNumber()
	var nodes []*yaml.Node
	for {
		node, err := r.value(0)
		if err == io.EOF {
			return nodes, nil
		}
		if err != nil {
			return nil, &problem{line: r.errorLine(err), text: "not valid JSON: " + jsonMessage(err)}
		}
		if node.Tag != "!!null" {
			nodes = append(nodes, node)
		}
	}
}

var errTooDeep = errors.New("nested too deep")

// value reads the next value; err is io.EOF where there is none.
func (r *jsonReader) value(depth int) (*yaml.Node, error) {
	token, err := r.decoder.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, errTooDeep
	}
	node := &yaml.Node{Line: r.lineOf(r.decoder.InputOffset())}
	switch v := token.(type) {
	case json.Delim:
		return node, r.children(node, v, depth)
	case string:
		node.Kind, node.Tag, node.Value = yaml.ScalarNode, "!!str", v
	case json.Number:
		node.Kind, node.Tag, node.Value = yaml.ScalarNode, "!!float", v.String()
	case bool:
		node.Kind, node.Tag, node.Value = yaml.ScalarNode, "!!bool", "false"
		if v {
			node.Value = "true"
		}
	default:
		node.Kind, node.Tag = yaml.ScalarNode, "!!null"
	}
	return node, nil
}

// children reads what is in an object or an array, up to its end. The keys of
// an object come as values do.
func (r *jsonReader) children(node *yaml.Node, open json.Delim, depth int) error {
	node.Kind, node.Tag = yaml.SequenceNode, "!!seq"
	if open == '{' {
		node.Kind, node.Tag = yaml.MappingNode, "!!map"
	}
	for r.decoder.More() {
		child, err := r.value(depth + 1)
		if err != nil {
			return inside(err)
		}
		node.Content = append(node.Content, child)
	}
	_, err := r.decoder.Token()
	return inside(err)
}

// inside returns the error as it is where a value must follow.
func inside(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *jsonReader) errorLine(err error) int {
	offset := r.decoder.InputOffset()
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		offset = max(offset, syntax.Offset)
	}
	return r.lineOf(offset + 1)
}

// lineOf returns the line of the byte before the offset.
func (r *jsonReader) lineOf(offset int64) int {
	i := sort.SearchInts(r.ends, int(offset))
	return min(i+1, max(len(r.ends), 1))
}

func jsonMessage(err error) string {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "it ends in the middle of a value"
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

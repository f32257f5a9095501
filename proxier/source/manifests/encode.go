// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"encoding/json"
	"math"
	"sort"
	"strconv"

	"go.yaml.in/yaml/v3"
)

const (
	// maxDepth bounds the nesting of an object. The deepest field that is read
	// is seven levels down.
	maxDepth = 100
	// maxExpansion bounds what the aliases in one file expand to, in bytes. A
	// few lines of aliases of aliases would otherwise fill any memory.
	maxExpansion = 8 << 20
)

// encoder turns nodes into JSON and remembers which line each part came from.
type encoder struct {
	buf   []byte
	marks []mark
	depth int
	// aliases is how many aliases the current node is inside of.
	aliases int
	// expansion is how many bytes aliases may still expand to.
	expansion *int
}

// mark tells the line that the JSON from the offset on came from.
type mark struct{ offset, line int }

// encode returns node as JSON and the marks for it.
func encode(node *yaml.Node, expansion *int) ([]byte, []mark, *problem) {
	e := &encoder{expansion: expansion}
	if p := e.node(node); p != nil {
		return nil, nil, p
	}
	return e.buf, e.marks, nil
}

// lastMark returns the last mark before the offset.
func lastMark(marks []mark, offset int) mark {
	i := sort.Search(len(marks), func(i int) bool { return marks[i].offset >= offset })
	return marks[max(i-1, 0)]
}

func (e *encoder) node(n *yaml.Node) *problem {
	if e.depth > maxDepth {
		return problemf(n.Line, "nested deeper than %d levels", maxDepth)
	}
	e.depth++
	defer func() { e.depth-- }()
	start := len(e.buf)
	e.marks = append(e.marks, mark{offset: start, line: n.Line})
	var p *problem
	switch n.Kind {
	case yaml.MappingNode:
		p = e.mapping(n)
	case yaml.SequenceNode:
		p = e.sequence(n)
	case yaml.ScalarNode:
		p = e.scalar(n)
		if p == nil && e.aliases > 0 {
			p = e.spend(n, len(e.buf)-start)
		}
	case yaml.AliasNode:
		e.aliases++
		p = e.node(n.Alias)
		e.aliases--
	default:
		p = problemf(n.Line, "not a value")
	}
	return p
}

// spend takes bytes from what aliases may still expand to.
func (e *encoder) spend(n *yaml.Node, bytes int) *problem {
	*e.expansion -= bytes
	if *e.expansion < 0 {
		return problemf(n.Line, "aliases expand to more than %d MiB", maxExpansion>>20)
	}
	return nil
}

func (e *encoder) sequence(n *yaml.Node) *problem {
	if e.aliases > 0 {
		if p := e.spend(n, 2); p != nil {
			return p
		}
	}
	e.buf = append(e.buf, '[')
	for i, child := range n.Content {
		if i > 0 {
			e.buf = append(e.buf, ',')
		}
		if p := e.node(child); p != nil {
			return p
		}
	}
	e.buf = append(e.buf, ']')
	return nil
}

func (e *encoder) mapping(n *yaml.Node) *problem {
	if e.aliases > 0 {
		if p := e.spend(n, 2); p != nil {
			return p
		}
	}
	e.buf = append(e.buf, '{')
	keys := newKeySet(len(n.Content) / 2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if isMerge(key) {
			merged = append(merged, value)
			continue
		}
		name, p := keyName(key)
		if p != nil {
			return p
		}
		if !keys.add(name) {
			return problemf(key.Line, "key %s is there twice", quote(name))
		}
		if p := e.member(key, name, value); p != nil {
			return p
		}
	}
	for _, value := range merged {
		if p := e.merge(keys, value); p != nil {
			return p
		}
	}
	e.buf = append(e.buf, '}')
	return nil
}

func (e *encoder) member(key *yaml.Node, name string, value *yaml.Node) *problem {
	if e.buf[len(e.buf)-1] != '{' {
		e.buf = append(e.buf, ',')
	}
	start := len(e.buf)
	e.marks = append(e.marks, mark{offset: start, line: key.Line})
	e.buf = append(appendString(e.buf, name), ':')
	if e.aliases > 0 {
		if p := e.spend(key, len(e.buf)-start); p != nil {
			return p
		}
	}
	return e.node(value)
}

// merge adds the members that a "<<" key's value has, a mapping or a list of
// them, and that are not there already.
func (e *encoder) merge(keys *keySet, value *yaml.Node) *problem {
	mappings := []*yaml.Node{value}
	if target := resolve(value); target.Kind == yaml.SequenceNode {
		mappings = target.Content
	}
	e.aliases++
	defer func() { e.aliases-- }()
	for _, v := range mappings {
		target := resolve(v)
		if target.Kind != yaml.MappingNode {
			return problemf(v.Line, "a merge key takes a mapping or a list of mappings")
		}
		if p := e.mergeOne(keys, target); p != nil {
			return p
		}
	}
	return nil
}

func (e *encoder) mergeOne(keys *keySet, from *yaml.Node) *problem {
	for i := 0; i+1 < len(from.Content); i += 2 {
		key := from.Content[i]
		if isMerge(key) {
			return problemf(key.Line, "a merged mapping with a merge key of its own is not supported")
		}
		name, p := keyName(key)
		if p != nil {
			return p
		}
		// Looking at a key costs, even if it is there already.
		if p := e.spend(key, 1+len(name)); p != nil {
			return p
		}
		if !keys.add(name) {
			continue
		}
		if p := e.member(key, name, from.Content[i+1]); p != nil {
			return p
		}
	}
	return nil
}

func (e *encoder) scalar(n *yaml.Node) *problem {
	switch tag := n.ShortTag(); tag {
	case "!!str", "!!timestamp":
		e.buf = appendString(e.buf, n.Value)
	case "!!null":
		e.buf = append(e.buf, "null"...)
	case "!!bool":
		var v bool
		if n.Decode(&v) != nil {
			return problemf(n.Line, "%s is not a boolean", quote(n.Value))
		}
		e.buf = strconv.AppendBool(e.buf, v)
	case "!!int", "!!float":
		return e.number(n)
	default:
		return problemf(n.Line, "tag %s is not supported", quote(tag))
	}
	return nil
}

func (e *encoder) number(n *yaml.Node) *problem {
	if json.Valid([]byte(n.Value)) {
		e.buf = append(e.buf, n.Value...)
		return nil
	}
	var i int64
	if n.Decode(&i) == nil {
		e.buf = strconv.AppendInt(e.buf, i, 10)
		return nil
	}
	var f float64
	if n.Decode(&f) != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return problemf(n.Line, "%s is not a number", quote(n.Value))
	}
	e.buf = strconv.AppendFloat(e.buf, f, 'g', -1, 64)
	return nil
}

// resolve returns the node that an alias stands for, and any other node itself.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isMerge(key *yaml.Node) bool { return key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" }

// keyName returns the key as the API's JSON has it: numbers and booleans by
// their text.
func keyName(key *yaml.Node) (string, *problem) {
	n := resolve(key)
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return "", problemf(key.Line, "a key is not a string")
	}
	return n.Value, nil
}

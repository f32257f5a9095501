// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"crypto/sha256"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"fairlead/proxier/source"
)

// digest identifies a text.
type digest [sha256.Size]byte

// document is what a chunk of a file holds. Lines count from the start of the
// chunk. It is immutable.
type document struct {
	objects []*object
	// ignored are the objects of other kinds, one of each kind.
	ignored  []ignored
	warnings []warning
}

// ignored is a kind of object that is not read.
type ignored struct {
	kind string
	line int
}

// warning is something that is wrong but does no harm.
type warning struct {
	line int
	text string
}

// placed is a document in its place in a file.
type placed struct {
	*document
	sum digest
	// line is the line in the file that the document starts with, from 1.
	line int
	// fresh is set where the file did not have the document before.
	fresh bool
}

// parser parses the files of a directory.
type parser struct {
	// nodeName is the name of the one Node that is read.
	nodeName string
	policy   source.Policy
}

// parse returns the documents in a file of the given name. Those that are among
// the known ones are not parsed again.
func (p *parser) parse(name string, text []byte, known []placed) ([]placed, *problem) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	parsed := make(map[digest]*document, len(known))
	for _, k := range known {
		parsed[k.sum] = k.document
	}
	chunks, documents := split(text), yamlDocuments
	if filepath.Ext(name) == ".json" {
		chunks, documents = []chunk{{text: text, line: 1}}, jsonDocuments
	}
	expansion := maxExpansion
	out := make([]placed, 0, len(chunks))
	for _, c := range chunks {
		at := placed{sum: sha256.Sum256(c.text), line: c.line, document: nil}
		if doc, ok := parsed[at.sum]; ok {
			at.document = doc
			out = append(out, at)
			continue
		}
		nodes, problem := documents(c.text)
		if problem != nil {
			return nil, problem.at(c.line, text)
		}
		doc, problem := p.document(nodes, &expansion)
		if problem != nil {
			return nil, problem.at(c.line, text)
		}
		at.document, at.fresh = doc, true
		parsed[at.sum] = doc
		out = append(out, at)
	}
	return out, nil
}

func (p *parser) document(nodes []*yaml.Node, expansion *int) (*document, *problem) {
	d := &decoder{document: &document{}, nodeName: p.nodeName, policy: p.policy, expansion: expansion}
	for _, node := range nodes {
		if problem := d.value(node, header{}, 0); problem != nil {
			return nil, problem
		}
	}
	return d.document, nil
}

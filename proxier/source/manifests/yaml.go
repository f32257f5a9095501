// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxLocate bounds the size of a text in which the line of a syntax error is
// looked for, in bytes.
const maxLocate = 4 << 20

// yamlDocuments returns the documents of a text, without the empty ones.
func yamlDocuments(text []byte) ([]*yaml.Node, *problem) {
	nodes, err := parseYAML(text)
	if err != nil {
		message := yamlMessage(err)
		return nil, &problem{line: errorLine(text, message), text: "not valid YAML: " + message}
	}
	return nodes, nil
}

func parseYAML(text []byte) (nodes []*yaml.Node, err error) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nil, err
		}
		if len(doc.Content) == 0 || doc.Content[0].ShortTag() == "!!null" {
			continue
		}
		nodes = append(nodes, doc.Content[0])
	}
}

var yamlPrefix = regexp.MustCompile(`^(yaml: )?(line \d+: )?`)

// yamlMessage returns the error without the line, which is that of the
// enclosing block, or the one before, or none, as it happens.
func yamlMessage(err error) string {
	message := strings.TrimPrefix(err.Error(), yamlPrefix.FindString(err.Error()))
	return strings.Join(strings.Fields(message), " ")
}

// errorLine returns the first line of text that makes the parser fail with the
// message. The parser stops at the first error, so what follows that line makes
// no difference, and without the line the error is not there.
func errorLine(text []byte, message string) int {
	if len(text) > maxLocate {
		return 1
	}
	ends := lineEnds(text)
	i := sort.Search(len(ends), func(i int) bool {
		_, err := parseYAML(text[:ends[i]])
		return err != nil && yamlMessage(err) == message
	})
	return min(i+1, max(len(ends), 1))
}

// lineEnds returns the offsets after each line of text.
func lineEnds(text []byte) []int {
	var ends []int
	for pos := 0; pos < len(text); {
		i := bytes.IndexByte(text[pos:], '\n')
		if i < 0 {
			return append(ends, len(text))
		}
		pos += i + 1
		ends = append(ends, pos)
	}
	return ends
}

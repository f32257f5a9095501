// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a word from a file in a message, and of a message, in bytes.
const (
	maxQuoted  = 80
	maxMessage = 200
)

// quote returns s as one printable, bounded word for a message.
func quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.QuoteToASCII(s[:maxQuoted]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// appendString appends s as a JSON string.
func appendString(buf []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			// A string always encodes.
			quoted, _ := json.Marshal(s)
			return append(buf, quoted...)
		}
	}
	buf = append(buf, '"')
	buf = append(buf, s...)
	return append(buf, '"')
}

// fewKeys is the size of a set up to which looking through it is faster than
// hashing.
const fewKeys = 16

// keySet is a set of strings that costs little while it is small.
type keySet struct {
	list []string
	hash map[string]struct{} // once the list is too long
}

func newKeySet(size int) *keySet {
	return &keySet{list: make([]string, 0, min(size, fewKeys))}
}

// add returns false where the set has the string already.
func (s *keySet) add(v string) bool {
	if s.hash == nil && len(s.list) < fewKeys {
		if slices.Contains(s.list, v) {
			return false
		}
		s.list = append(s.list, v)
		return true
	}
	if s.hash == nil {
		s.hash = make(map[string]struct{}, 2*fewKeys)
		for _, old := range s.list {
			s.hash[old] = struct{}{}
		}
	}
	_, has := s.hash[v]
	s.hash[v] = struct{}{}
	return !has
}

// clip returns s bounded for a message.
func clip(s string) string {
	if len(s) > maxMessage {
		return strings.ToValidUTF8(s[:maxMessage], "") + "..."
	}
	return s
}

// oneLine returns s with every run of white space as one space.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

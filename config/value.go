// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/csv"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// register defines the flag of a setting.
func (s *setting) register(fs *pflag.FlagSet) {
	switch v := s.value.(type) {
	case *string:
		fs.StringVar(v, s.flag, *v, s.usage)
	case *bool:
		fs.BoolVar(v, s.flag, *v, s.usage)
	case *int:
		short := ""
		if len(s.flag) == 1 {
			short = s.flag
		}
		fs.IntVarP(v, s.flag, short, *v, s.usage)
	case *float64:
		fs.Float64Var(v, s.flag, *v, s.usage)
	case *time.Duration:
		fs.DurationVar(v, s.flag, *v, s.usage)
	case *[]string:
		fs.Var(&list{values: v}, s.flag, s.usage)
	case *map[string]bool:
		fs.Var((*gates)(v), s.flag, s.usage)
	case *VModule:
		fs.StringVar((*string)(v), s.flag, "", s.usage)
	default:
		panic(fmt.Sprintf("setting %s: no flag of type %T", s.name(), s.value))
	}
}

// list is a flag of values with commas between. What is given replaces the default, and
// adds to what was given before. Given but empty it is not nil.
type list struct {
	values *[]string
	given  bool
}

// Set implements pflag.Value.
func (l *list) Set(text string) error {
	if !l.given {
		*l.values, l.given = []string{}, true
	}
	if text == "" {
		return nil
	}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return err
	}
	for _, f := range fields {
		if f = strings.TrimSpace(f); f != "" {
			*l.values = append(*l.values, f)
		}
	}
	return nil
}

// String implements pflag.Value.
func (l *list) String() string {
	if l.values == nil {
		return ""
	}
	return strings.Join(*l.values, ",")
}

// Type implements pflag.Value.
func (l *list) Type() string { return "strings" }

// gates is a flag of name=bool with commas between.
type gates map[string]bool

// Set implements pflag.Value.
func (g *gates) Set(text string) error {
	if *g == nil {
		*g = gates{}
	}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		on, err := strconv.ParseBool(strings.TrimSpace(value))
		if err != nil {
			return fmt.Errorf("%q is not name=true or name=false", part)
		}
		(*g)[strings.TrimSpace(name)] = on
	}
	return nil
}

// String implements pflag.Value.
func (g *gates) String() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(*g)) {
		out = append(out, fmt.Sprintf("%s=%t", name, (*g)[name]))
	}
	return strings.Join(out, ",")
}

// Type implements pflag.Value.
func (g *gates) Type() string { return "name=bool" }

// decode reads a value of a file, which is not null. Its errors say what is wanted.
func (s *setting) decode(n *yaml.Node) error {
	switch v := s.value.(type) {
	case *string:
		return decodeText(n, v)
	case *time.Duration:
		return decodeDuration(n, v)
	case *bool:
		return decodeAs(n, v, "true or false")
	case *int:
		return decodeAs(n, v, "a whole number")
	case *float64:
		return decodeAs(n, v, "a number")
	case *[]string:
		return decodeList(n, v)
	case *map[string]bool:
		*v = nil // as a later mapping of two takes the place of the first
		return decodeAs(n, v, "a mapping of names to true or false")
	case *VModule:
		return decodeVModule(n, v)
	}
	panic(fmt.Sprintf("setting %s: no field of type %T", s.name(), s.value))
}

func decodeAs(n *yaml.Node, into any, wanted string) error {
	if err := n.Decode(into); err != nil {
		return fmt.Errorf("wants %s, not %s", wanted, shown(n))
	}
	return nil
}

func decodeText(n *yaml.Node, into *string) error {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return fmt.Errorf("wants text, not %s; put it in quotes if it is", shown(n))
	}
	*into = n.Value
	return nil
}

func decodeDuration(n *yaml.Node, into *time.Duration) error {
	const wanted = "wants a duration like 30s or 1h30m, not %s"
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return fmt.Errorf(wanted, shown(n))
	}
	d, err := time.ParseDuration(n.Value)
	if err != nil {
		return fmt.Errorf(wanted, shown(n))
	}
	*into = d
	return nil
}

func decodeList(n *yaml.Node, into *[]string) error {
	if n.Kind != yaml.SequenceNode {
		return fmt.Errorf("wants a list, not %s", shown(n))
	}
	out := []string{}
	for _, item := range n.Content {
		var text string
		if err := decodeText(resolve(item), &text); err != nil {
			return err
		}
		out = append(out, strings.TrimSpace(text))
	}
	*into = out
	return nil
}

func decodeVModule(n *yaml.Node, into *VModule) error {
	var items []struct {
		FilePattern string `yaml:"filePattern"`
		Verbosity   uint32 `yaml:"verbosity"`
	}
	if err := decodeAs(n, &items, "a list of filePattern and verbosity"); err != nil {
		return err
	}
	var out []string
	for _, i := range items {
		if i.FilePattern == "" || strings.ContainsAny(i.FilePattern, "=,") {
			return fmt.Errorf("filePattern %q is not a pattern of file names", i.FilePattern)
		}
		out = append(out, fmt.Sprintf("%s=%d", i.FilePattern, i.Verbosity))
	}
	*into = VModule(strings.Join(out, ","))
	return nil
}

// shown shows a value to a person, as far as it is short.
func shown(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case len(n.Value) > 40:
		return strconv.Quote(strings.ToValidUTF8(n.Value[:40], "") + "…")
	}
	return strconv.Quote(n.Value)
}

// resolve follows an alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// encode returns the value as a file has it.
func (s *setting) encode() any {
	switch v := s.value.(type) {
	case *time.Duration:
		return v.String()
	case *VModule:
		return v.items()
	case *[]string:
		if *v == nil { // which is not the same as an empty list
			return nil
		}
	}
	return reflect.ValueOf(s.value).Elem().Interface()
}

type vmoduleItem struct {
	FilePattern string `json:"filePattern" yaml:"filePattern"`
	Verbosity   int    `json:"verbosity" yaml:"verbosity"`
}

func (v VModule) items() []vmoduleItem {
	out := []vmoduleItem{}
	for part := range strings.SplitSeq(string(v), ",") {
		pattern, level, _ := strings.Cut(strings.TrimSpace(part), "=")
		if n, err := strconv.Atoi(level); err == nil && pattern != "" {
			out = append(out, vmoduleItem{pattern, n})
		}
	}
	return out
}

// isZero tells whether the value is what stands for the default where zeroIsDefault is
// set.
func (s *setting) isZero() bool {
	v := reflect.ValueOf(s.value).Elem()
	return v.IsZero() || v.Kind() == reflect.Slice && v.Len() == 0
}

// take makes the value what another one is, a row of the table of other Settings.
func (s *setting) take(from *setting) {
	reflect.ValueOf(s.value).Elem().Set(reflect.ValueOf(from.value).Elem())
}

// equal tells whether the value is what another one is.
func (s *setting) equal(to *setting) bool { return reflect.DeepEqual(s.value, to.value) }

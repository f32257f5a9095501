// SPDX-License-Identifier: Apache-2.0

// Command promnames checks Prometheus rule files and expressions as Prometheus does,
// and prints the names of the metrics that they ask for, one in a line.
//
//	promnames rules FILE...     # rule files
//	promnames expr < EXPRS      # expressions, each ended by a NUL
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	names, err := run(os.Args[1:], os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "promnames:", err)
		os.Exit(1)
	}
	for _, name := range names {
		fmt.Println(name)
	}
}

func run(args []string, in io.Reader) ([]string, error) {
	found := names{parser: parser.NewParser(parser.Options{}), of: map[string]bool{}}
	var err error
	switch {
	case len(args) > 1 && args[0] == "rules":
		for _, file := range args[1:] {
			err = errors.Join(err, found.rules(file))
		}
	case len(args) == 1 && args[0] == "expr":
		err = found.exprs(in)
	default:
		err = errors.New("usage: promnames rules FILE... | promnames expr")
	}
	return slices.Sorted(maps.Keys(found.of)), err
}

// names collects the names of metrics.
type names struct {
	parser parser.Parser
	of     map[string]bool
}

func (n names) rules(file string) error {
	groups, errs := rulefmt.ParseFile(file, false, model.UTF8Validation, n.parser, slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			if err := n.expr(r.Expr); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return nil
}

func (n names) exprs(in io.Reader) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	for expr := range bytes.SplitSeq(bytes.TrimSuffix(text, []byte{0}), []byte{0}) {
		err = errors.Join(err, n.expr(string(expr)))
	}
	return err
}

func (n names) expr(text string) error {
	expr, err := n.parser.ParseExpr(text)
	if err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok {
			name := s.Name
			for _, m := range s.LabelMatchers {
				if name == "" && m.Name == labels.MetricName && m.Type == labels.MatchEqual {
					name = m.Value
				}
			}
			n.of[name] = true
		}
		return nil
	})
	return nil
}

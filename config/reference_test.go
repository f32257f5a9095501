// SPDX-License-Identifier: Apache-2.0

package config

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

// TestReference: docs/configuration.md is what the table makes of it.
func TestReference(t *testing.T) {
	const file = "../docs/configuration.md"
	want := reference()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("run make docs; docs/configuration.md differs (-code +page):\n%s", diff)
	}
}

const referenceHead = `<!-- Made by make docs from the package config. -->

# What can be set

By flags, or by the file that ` + "`--config`" + ` names. The file is kube-proxy's: one that kube-proxy
is started with works as it is. What only Fairlead has goes into a second document of the
file, which kube-proxy does not read:

` + "```yaml" + `
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
mode: ipvs,iptables
---
apiVersion: fairlead.io/v1alpha1
kind: FairleadConfiguration
iptables:
  variant: nft
` + "```" + `

- Beside a file, kube-proxy's own flags have no effect, as with kube-proxy; those that say
  otherwise below, and all of Fairlead's own, count more than the file.
- What is not there, or null, is the default. Where 0 or "" stand for the default, too,
  this is said below.
- A field that is unknown, or there twice, is a warning with file and line, and all else
  holds. A value that makes no sense ends the start with one line that says where it is.
- A changed file takes effect at once: the agent starts anew in the same process, and the
  rules stay. If it makes no sense, or is impossible on this node, the log says so, ` + "`fairlead_config_refused`" + ` is 1, and what
  was said before holds.
- ` + "`--write-config-to FILE`" + ` writes what flags or a file say, with all defaults;
  ` + "`/configz`" + ` beside the metrics tells it of a running agent.
`

// reference returns the page.
func reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	for _, sec := range Default().table() {
		fmt.Fprintf(&b, "\n## %s\n\n| flag | field | default | |\n|---|---|---|---|\n", sec.title)
		for _, s := range sec.settings {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", code(dashed(s.flag)), s.place(), s.defaultText(), cell(s.usage+s.remarks()))
		}
	}
	b.WriteString("\n## Without a meaning\n\nAccepted, with a warning if they say something:\n\n| flags | fields | |\n|---|---|---|\n")
	for _, d := range deads() {
		flags := slices.Clone(d.flags)
		for i := range flags {
			flags[i] = code("--" + flags[i])
		}
		fields := slices.Clone(d.fields)
		for i := range fields {
			fields[i] = code(fields[i])
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", strings.Join(flags, " "), strings.Join(fields, " "), d.why)
	}
	b.WriteString("\n`--healthz-port` and `--metrics-port` are the ports of `--healthz-bind-address` and\n`--metrics-bind-address`, where these are not given; 0 means none.\n")
	return b.String()
}

func dashed(flag string) string {
	if flag == "" {
		return ""
	}
	if len(flag) == 1 {
		return "-" + flag
	}
	return "--" + flag
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// place is where a setting is in a file.
func (s *setting) place() string {
	if s.in == fairlead {
		return code(s.field) + " of FairleadConfiguration"
	}
	return code(s.field)
}

// defaultText returns the default as a person would write it.
func (s *setting) defaultText() string {
	switch v := s.value.(type) {
	case *bool, *int, *float64:
		return code(fmt.Sprint(reflect.ValueOf(v).Elem()))
	case *time.Duration:
		return code(short(*v))
	case *[]string:
		return code(strings.Join(*v, ","))
	case *map[string]bool:
		return code(strings.Join(slices.Sorted(maps.Keys(*v)), ","))
	}
	return code(reflect.ValueOf(s.value).Elem().String())
}

// short returns a duration without parts that are zero.
func short(d time.Duration) string {
	text := d.String()
	if rest, ok := strings.CutSuffix(text, "m0s"); ok {
		text = rest + "m"
	}
	if rest, ok := strings.CutSuffix(text, "h0m"); ok {
		text = rest + "h"
	}
	return text
}

func (s *setting) remarks() string {
	out := ""
	if s.beside {
		out += " The flag counts beside a file."
	}
	if s.zeroIsDefault && !s.isZero() {
		zero := `""`
		switch s.value.(type) {
		case *time.Duration:
			zero = "0s"
		case *int, *float64:
			zero = "0"
		}
		out += " In a file, " + zero + " stands for the default."
	}
	return out
}

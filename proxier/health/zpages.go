// SPDX-License-Identifier: Apache-2.0

package health

import (
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"
)

// component is what the pages call the agent.
const component = "fairlead"

// zpage is a page for debugging as Kubernetes' components have them (KEP-4827, KEP-4828):
// text, or an object of config.k8s.io for who asks for that.
type zpage struct {
	// kind is that of the object.
	kind string
	// lines are the text, and fields the object but for its type and its name.
	lines  func() []string
	fields func() map[string]any
}

var _ http.Handler = zpage{}

// ServeHTTP answers in the first form that is accepted and that there is.
func (z zpage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	version, ok := z.accepted(r.Header.Get("Accept"))
	switch {
	case !ok:
		http.Error(w, fmt.Sprintf("only text/plain, and application/json;v=v1beta1;g=config.k8s.io;as=%s", z.kind), http.StatusNotAcceptable)
	case version == "":
		const head = "\n%s %s\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n\n"
		text(fmt.Sprintf(head, component, strings.ToLower(z.kind))+strings.Join(z.lines(), "\n")+"\n").ServeHTTP(w, r)
	default:
		object := z.fields()
		object["kind"], object["apiVersion"], object["metadata"] = z.kind, "config.k8s.io/"+version, map[string]string{"name": component}
		serveJSON(w, object)
	}
}

// accepted returns the version of the object that is asked for, empty for the text.
func (z zpage) accepted(header string) (version string, ok bool) {
	if strings.TrimSpace(header) == "" {
		return "", true
	}
	for item := range strings.SplitSeq(header, ",") {
		typ, params, err := mime.ParseMediaType(item)
		if err != nil {
			continue
		}
		switch typ {
		case "text/plain", "text/*", "*/*":
			return "", true
		case "application/json":
			if v := params["v"]; (v == "v1beta1" || v == "v1alpha1") && params["g"] == "config.k8s.io" && params["as"] == z.kind {
				return v, true
			}
		}
	}
	return "", false
}

// serveJSON answers with an object.
func serveJSON(w http.ResponseWriter, object any) {
	body, err := json.Marshal(object)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body) // the reader has gone: nobody is left to tell
}

// flagz shows flags and their values.
func flagz(flags map[string]string) zpage {
	return zpage{
		kind: "Flagz",
		lines: func() (out []string) {
			for _, name := range slices.Sorted(maps.Keys(flags)) {
				out = append(out, name+"="+flags[name])
			}
			return out
		},
		fields: func() map[string]any { return map[string]any{"flags": flags} },
	}
}

// statusz shows what runs, and since when, and which pages there are.
func statusz(version string, started time.Time, paths []string) zpage {
	paths = slices.Sorted(slices.Values(paths))
	return zpage{
		kind: "Statusz",
		lines: func() []string {
			up := int64(time.Since(started).Seconds())
			return []string{
				"Started: " + started.Format(time.UnixDate),
				fmt.Sprintf("Up: %d hr %02d min %02d sec", up/3600, up/60%60, up%60),
				"Go version: " + runtime.Version(),
				"Binary version: " + version,
				"",
				"Paths: " + strings.Join(paths, " "),
			}
		},
		fields: func() map[string]any {
			return map[string]any{
				"startTime": started.UTC().Format(time.RFC3339), "uptimeSeconds": int64(time.Since(started).Seconds()),
				"goVersion": runtime.Version(), "binaryVersion": version, "paths": paths,
			}
		},
	}
}

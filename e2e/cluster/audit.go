// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// AuditLog is what an API server writes of all requests.
type AuditLog struct{ policy, log string }

// NewAuditLog makes one whose files are in a directory.
func NewAuditLog(dir string) (AuditLog, error) {
	a := AuditLog{policy: filepath.Join(dir, "policy.yaml"), log: filepath.Join(dir, "audit.log")}
	const policy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata", "omitStages": ["RequestReceived"]}]}`
	if err := os.WriteFile(a.policy, []byte(policy), 0o600); err != nil {
		return a, fmt.Errorf("write audit policy: %w", err)
	}
	return a, nil
}

// Flags are those of the API server, see Config.APIServerFlags.
func (a AuditLog) Flags() []string {
	return []string{"--audit-policy-file=" + a.policy, "--audit-log-path=" + a.log, "--audit-log-mode=blocking-strict"}
}

// Request is a request to the API server.
type Request struct {
	// User is whom it was made as, and Source the address that it came from.
	User, Source string
	// Verb is what was asked: list, watch, create. Group and Resource are of what, and
	// URI is all of it.
	Verb, Group, Resource, URI string
	// Code is the status of the answer.
	Code     int
	Received time.Time
}

// Refused tells whether the API server did not know the user, or did not allow it.
func (r Request) Refused() bool { return r.Code == 401 || r.Code == 403 }

// String is one line.
func (r Request) String() string {
	return fmt.Sprintf("%s %d %s by %s from %s", r.Verb, r.Code, r.URI, r.User, r.Source)
}

// Requests returns the requests that have been answered, or begun to be, in the order of
// their answers. A watch that still stands is among them.
func (a AuditLog) Requests() ([]Request, error) {
	text, err := os.ReadFile(a.log)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	var out []Request
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		var e struct {
			AuditID, Verb, RequestURI string
			User, ImpersonatedUser    struct{ Username string }
			SourceIPs                 []string
			ObjectRef                 struct{ APIGroup, Resource string }
			ResponseStatus            struct{ Code int }
			RequestReceivedTimestamp  time.Time
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, fmt.Errorf("read audit log: %w: %s", err, line)
		}
		if seen[e.AuditID] {
			continue // the end of a watch
		}
		seen[e.AuditID] = true
		r := Request{
			User: e.User.Username, Verb: e.Verb, Group: e.ObjectRef.APIGroup, Resource: e.ObjectRef.Resource,
			URI: e.RequestURI, Code: e.ResponseStatus.Code, Received: e.RequestReceivedTimestamp,
		}
		if e.ImpersonatedUser.Username != "" {
			r.User = e.ImpersonatedUser.Username
		}
		if len(e.SourceIPs) > 0 {
			r.Source = e.SourceIPs[0]
		}
		out = append(out, r)
	}
	return out, nil
}

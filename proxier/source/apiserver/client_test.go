// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"fairlead/proxier/source/sourcetest"
)

func kubeconfig(server string) string {
	return `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "` + server + `"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestNewClientErrorsAreOneLineThatSaysWhatToDo(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBERNETES_SERVICE_PORT", "")
	for _, tt := range []struct {
		name               string
		kubeconfig, master string
		is                 error
		parts              []string
	}{
		{
			name:  "neither file nor server, outside a cluster",
			is:    ErrNotInCluster,
			parts: []string{"--kubeconfig", "--manifests"},
		},
		{
			name:       "no such file",
			kubeconfig: "/nonexistent/kubeconfig",
			is:         fs.ErrNotExist,
			parts:      []string{"/nonexistent/kubeconfig", "--kubeconfig"},
		},
		{
			name:       "a directory",
			kubeconfig: t.TempDir(),
			parts:      []string{"is a directory", "--kubeconfig"},
		},
		{
			name:       "not YAML",
			kubeconfig: writeFile(t, "{{{"),
			parts:      []string{"read kubeconfig", "--kubeconfig"},
		},
		{
			name:       "empty",
			kubeconfig: writeFile(t, ""),
			parts:      []string{"names no cluster", "--kubeconfig"},
		},
		{
			name:       "a context that does not exist",
			kubeconfig: writeFile(t, strings.Replace(kubeconfig("https://h"), "current-context: x", "current-context: y", 1)),
			parts:      []string{"y", "--kubeconfig"},
		},
		{
			name:   "not a URL",
			master: "http://[::1",
			parts:  []string{"http://[::1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewClient(ClientConfig{Kubeconfig: tt.kubeconfig, Master: tt.master, Version: "v0"})
			if err == nil {
				t.Fatal("NewClient = nil")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			for _, part := range tt.parts {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not contain %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q is not one line", err)
			}
		})
	}
}

// TestClientConfig: JSON is asked for if it is to be, and requests are held up as QPS and
// Burst say; below 0 they are not.
func TestClientConfig(t *testing.T) {
	var accepted []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		accepted = append(accepted, r.Header.Get("Accept"))
		http.Error(w, "enough", http.StatusTeapot)
	}))
	defer server.Close()
	for _, tt := range []struct {
		cfg  ClientConfig
		held bool
	}{
		{ClientConfig{ContentType: "application/json", QPS: 1e-6, Burst: 2}, true},
		{ClientConfig{ContentType: "application/json", QPS: -1, Burst: 1}, false},
	} {
		tt.cfg.Master = server.URL
		client, err := NewClient(tt.cfg)
		if err != nil {
			t.Fatal(err)
		}
		accepted = nil
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		for range 3 { // the limiter knows at once that the third one's turn comes too late
			_, err = client.nodes.List(ctx, metav1.ListOptions{})
		}
		cancel()
		if held := strings.Contains(err.Error(), "rate limiter"); held != tt.held {
			t.Errorf("QPS %v: got %v", tt.cfg.QPS, err)
		}
		if len(accepted) < 2 || accepted[0] != "application/json,application/json" {
			t.Errorf("QPS %v: %d requests that accept %q", tt.cfg.QPS, len(accepted), accepted)
		}
	}
}

// TestRemoveTaint: one taint goes and the others stay; what changes the Node meanwhile is
// not lost, and what fails is tried again.
func TestRemoveTaint(t *testing.T) {
	node := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: nodeName, ResourceVersion: "1"}}
	node.Spec.Taints = []corev1.Taint{{Key: "a", Effect: "NoSchedule"}, {Key: "a", Effect: "NoExecute"}, {Key: "b", Effect: "NoSchedule"}}
	patches := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any = &corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, Items: []corev1.Node{*node}}
		if r.Method == http.MethodPatch {
			var patch corev1.Node
			if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
				t.Error(err)
			}
			if patches++; patches == 1 { // somebody was faster
				node.ResourceVersion = "2"
				node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: "c", Effect: "NoSchedule"})
			}
			if patch.ResourceVersion != node.ResourceVersion {
				http.Error(w, "conflict", http.StatusConflict)
				return
			}
			node.Spec.Taints = patch.Spec.Taints
			answer = node
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	client, err := NewClient(ClientConfig{Master: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Client: client, NodeName: nodeName})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		taint Taint
		left  string
	}{
		{Taint{"a", "NoExecute"}, "a:NoSchedule b:NoSchedule c:NoSchedule "},
		{Taint{"none", ""}, "a:NoSchedule b:NoSchedule c:NoSchedule "},
		{Taint{"a", ""}, "b:NoSchedule c:NoSchedule "},
	} {
		s.RemoveTaint(t.Context(), step.taint)
		left := ""
		for _, taint := range node.Spec.Taints {
			left += taint.ToString() + " "
		}
		if left != step.left {
			t.Errorf("without %v: got %q, want %q", step.taint, left, step.left)
		}
	}
	if patches != 3 {
		t.Errorf("got %d patches, want 3", patches)
	}
}

func TestNewClientAsksForProtobufUnderItsName(t *testing.T) {
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		w.Header().Set("Connection", "close")
		http.Error(w, "enough", http.StatusTeapot)
	}))
	defer server.Close()
	for _, tt := range []struct{ name, kubeconfig, master string }{
		{"server from the file", writeFile(t, kubeconfig(server.URL)), ""},
		{"server overrides the file", writeFile(t, kubeconfig("https://192.0.2.1")), server.URL},
		{"server without a file", "", server.URL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, err := NewClient(ClientConfig{Kubeconfig: tt.kubeconfig, Master: tt.master, Version: "v1.2.3"})
			if err != nil {
				t.Fatal(err)
			}
			got = nil
			if _, err := client.services("").List(t.Context(), metav1.ListOptions{}); err == nil {
				t.Error("List succeeds")
			}
			if want := "fairlead/v1.2.3"; got.Get("User-Agent") != want {
				t.Errorf("user agent %q, want %q", got.Get("User-Agent"), want)
			}
			if want := "application/vnd.kubernetes.protobuf,application/json"; got.Get("Accept") != want {
				t.Errorf("accepts %q, want %q", got.Get("Accept"), want)
			}
			if got := client.server; got != server.URL {
				t.Errorf("server URL %q, want %q", got, server.URL)
			}
		})
	}
}

func TestRunWithoutServerTellsAndStops(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	listener.Close()
	client, err := NewClient(ClientConfig{Master: url, Version: "v0"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Client: client, NodeName: nodeName})
	if err != nil {
		t.Fatal(err)
	}
	logs, sink := sourcetest.NewLog(t), sourcetest.NewRecorder(t)
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), logs.Logger()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, sink) }()
	logs.WaitFor("Cannot read from the API server", `server="`+url+`"`, "connection refused")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if steps := sink.Steps(); len(steps) > 0 {
		t.Errorf("steps without a server: %+v", steps)
	}
}

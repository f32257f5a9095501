// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Request limits of the client. Three watches need few requests; the figures
// are kube-proxy's defaults.
const (
	qps   = 5
	burst = 10
)

// ErrNotInCluster is the cause where neither a kubeconfig nor a server is named
// and the process does not run in a pod that could find out by itself.
var ErrNotInCluster = errors.New("no API server is named and this is not a pod of a cluster; name one with --kubeconfig FILE, or read objects from files with --manifests DIR")

// NewClient returns a client for the API server that the kubeconfig file
// names, or for the server at the URL master, which overrides the file's. Where
// both are empty it is the server of the cluster that the process runs in.
// Version goes into the user agent, "fairlead/<version>".
//
// It connects to nothing yet. Errors are one line and say what to do.
func NewClient(kubeconfig, master, version string) (kubernetes.Interface, error) {
	config, err := loadConfig(kubeconfig, master)
	if err != nil {
		return nil, err
	}
	// Protobuf decodes faster and into less garbage than JSON.
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.QPS = qps
	config.Burst = burst
	config.UserAgent = "fairlead/" + version
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for API server %s: %s", config.Host, oneLine(err))
	}
	return client, nil
}

func loadConfig(kubeconfig, master string) (*rest.Config, error) {
	if kubeconfig == "" && master == "" {
		return inClusterConfig()
	}
	if kubeconfig != "" {
		if _, err := os.ReadFile(kubeconfig); err != nil {
			return nil, fmt.Errorf("read kubeconfig: %w; name a readable file with --kubeconfig", err)
		}
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig},
		&clientcmd.ConfigOverrides{ClusterInfo: api.Cluster{Server: master}},
	).ClientConfig()
	switch {
	case err == nil:
		return config, nil
	case clientcmd.IsEmptyConfig(err):
		return nil, fmt.Errorf("read kubeconfig %s: it names no cluster; give a complete file with --kubeconfig", kubeconfig)
	case kubeconfig == "":
		return nil, fmt.Errorf("use API server %s: %s; give its URL with --master", master, oneLine(err))
	}
	return nil, fmt.Errorf("read kubeconfig %s: %s; give a valid file with --kubeconfig", kubeconfig, oneLine(err))
}

func inClusterConfig() (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, ErrNotInCluster
	}
	if err != nil {
		return nil, fmt.Errorf("read the pod's service account: %w; mount it, or name an API server with --kubeconfig", err)
	}
	return config, nil
}

// oneLine returns the error's text without the line breaks that some of
// client-go's errors have.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

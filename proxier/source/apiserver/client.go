// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/flowcontrol"
)

// ErrNotInCluster is the cause where neither a kubeconfig nor a server is named
// and the process does not run in a pod that could find out by itself.
var ErrNotInCluster = errors.New("no API server is named and this is not a pod of a cluster; name one with --kubeconfig FILE, or read objects from files with --manifests DIR")

// Client asks an API server for what a Source reads, and writes its Events. It
// is no clientset of client-go's, which brings along the types of all APIs: 10 MB
// of a binary, and 8 MB of resident memory.
type Client struct {
	// server is its URL.
	server string
	// gate is what requests of informers pass.
	gate           *gate
	services       func(namespace string) lister[*corev1.ServiceList]
	endpointSlices lister[*discoveryv1.EndpointSliceList]
	serviceCIDRs   lister[*networkingv1.ServiceCIDRList]
	pods           lister[*corev1.PodList]
	nodes          lister[*corev1.NodeList]
	node           nodePatcher
	events         func(namespace string) eventClient
	// semantics tells client-go whether the server's lists can be streamed.
	semantics any
}

// ClientConfig says which API server to ask, and how.
type ClientConfig struct {
	// Kubeconfig is a file that names it. Master is its URL, which overrides the
	// file's. Where both are empty it is the server of the cluster that the process
	// runs in.
	Kubeconfig, Master string
	// ServiceCIDRs are where cluster IPs are known to be: the server's is refused.
	ServiceCIDRs []netip.Prefix
	// Version goes into the user agent, "fairlead/<version>".
	Version string
	// ContentType is what to ask for, protobuf if empty. The server may answer in JSON
	// all the same.
	ContentType string
	// QPS and Burst bound the requests, as in client-go: 5 and 10 if zero.
	QPS   float32
	Burst int
}

// NewClient returns a client. It connects to nothing yet. Errors are one line and say
// what to do.
func NewClient(cfg ClientConfig) (*Client, error) {
	config, err := loadConfig(cfg.Kubeconfig, cfg.Master)
	if err != nil {
		return nil, err
	}
	if err := refuseClusterIP(config.Host, cfg.ServiceCIDRs, os.Getenv); err != nil {
		return nil, err
	}
	// Protobuf decodes faster and into less garbage than JSON.
	config.ContentType = cmp.Or(cfg.ContentType, runtime.ContentTypeProtobuf)
	config.AcceptContentTypes = config.ContentType + "," + runtime.ContentTypeJSON
	config.QPS = cmp.Or(cfg.QPS, rest.DefaultQPS)
	config.Burst = cmp.Or(cfg.Burst, rest.DefaultBurst)
	config.UserAgent = "fairlead/" + cfg.Version
	client, err := newClient(config)
	if err != nil {
		return nil, fmt.Errorf("make client for API server %s: %s", config.Host, oneLine(err))
	}
	return client, nil
}

func newClient(config *rest.Config) (*Client, error) {
	groups, err := newGroups(config)
	if err != nil {
		return nil, err
	}
	core, err1 := groups.client(corev1.SchemeGroupVersion)
	discovery, err2 := groups.client(discoveryv1.SchemeGroupVersion)
	networking, err3 := groups.client(networkingv1.SchemeGroupVersion)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	params := groups.params
	nodes := gentype.NewClientWithList("nodes", core, params, "", newOf[corev1.Node], newOf[corev1.NodeList])
	return &Client{
		server: serverURL(core),
		gate:   newGate(),
		services: func(namespace string) lister[*corev1.ServiceList] {
			return gentype.NewClientWithList("services", core, params, namespace, newOf[corev1.Service], newOf[corev1.ServiceList])
		},
		endpointSlices: gentype.NewClientWithList("endpointslices", discovery, params, "", newOf[discoveryv1.EndpointSlice], newOf[discoveryv1.EndpointSliceList]),
		serviceCIDRs:   gentype.NewClientWithList("servicecidrs", networking, params, "", newOf[networkingv1.ServiceCIDR], newOf[networkingv1.ServiceCIDRList]),
		pods:           gentype.NewClientWithList("pods", core, params, "", newOf[corev1.Pod], newOf[corev1.PodList]),
		nodes:          nodes,
		node:           nodes,
		events: func(namespace string) eventClient {
			return gentype.NewClient("events", core, params, namespace, newOf[corev1.Event])
		},
	}, nil
}

func newOf[T any]() *T { return new(T) }

// serverURL returns the URL of a client's server.
func serverURL(client rest.Interface) string {
	u := client.Get().URL()
	return u.Scheme + "://" + u.Host
}

// groups makes the clients of API groups, which share their connections and
// their limits.
type groups struct {
	config rest.Config
	http   *http.Client
	params runtime.ParameterCodec
}

func newGroups(config *rest.Config) (*groups, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	g := &groups{config: *config, params: runtime.NewParameterCodec(scheme)}
	g.config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	if config.QPS > 0 { // below there is no bound
		g.config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(config.QPS, config.Burst)
	}
	g.http, err = rest.HTTPClientFor(config)
	return g, err
}

// newScheme returns the types that a Client reads and writes.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	return s, errors.Join(corev1.AddToScheme(s), discoveryv1.AddToScheme(s), networkingv1.AddToScheme(s))
}

func (g *groups) client(version schema.GroupVersion) (rest.Interface, error) {
	config := g.config
	config.GroupVersion = &version
	config.APIPath = "/apis"
	if version.Group == "" {
		config.APIPath = "/api"
	}
	return rest.RESTClientForConfigAndClient(&config, g.http)
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

// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/json"

	"fairlead/proxier/source"
)

const (
	// maxLists bounds how deep lists hold lists.
	maxLists = 4
	// maxWarnings bounds the warnings and the ignored kinds of a document.
	maxWarnings = 10
)

// header is what an object says of its type.
type header struct{ apiVersion, kind string }

// The types of objects that are read, and the lists of them.
var (
	serviceType       = header{"v1", source.KindService}
	endpointSliceType = header{"discovery.k8s.io/v1", source.KindEndpointSlice}
	serviceCIDRType   = header{"networking.k8s.io/v1", source.KindServiceCIDR}
	podType           = header{"v1", source.KindPod}
	nodeType          = header{"v1", source.KindNode}

	anyList           = header{"v1", "List"}
	serviceList       = header{"v1", "ServiceList"}
	endpointSliceList = header{"discovery.k8s.io/v1", "EndpointSliceList"}
	serviceCIDRList   = header{"networking.k8s.io/v1", "ServiceCIDRList"}
	podList           = header{"v1", "PodList"}
	nodeList          = header{"v1", "NodeList"}
)

// decoder turns the nodes of one document into objects.
type decoder struct {
	*document
	nodeName  string
	policy    source.Policy
	expansion *int
}

// value takes one object, or a list of them. implied is the type that it has
// where it does not say, as the elements of a typed list may.
func (d *decoder) value(n *yaml.Node, implied header, depth int) *problem {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		return problemf(n.Line, "not an object with apiVersion and kind")
	}
	head, p := readHeader(n, implied)
	if p != nil {
		return p
	}
	switch head {
	case serviceType:
		return d.service(n)
	case endpointSliceType:
		return d.endpointSlice(n)
	case serviceCIDRType:
		return d.serviceCIDR(n)
	case podType:
		return d.pod(n)
	case nodeType:
		return d.node(n)
	case anyList:
		return d.list(n, header{}, depth)
	case serviceList:
		return d.list(n, serviceType, depth)
	case endpointSliceList:
		return d.list(n, endpointSliceType, depth)
	case serviceCIDRList:
		return d.list(n, serviceCIDRType, depth)
	case podList:
		return d.list(n, podType, depth)
	case nodeList:
		return d.list(n, nodeType, depth)
	}
	d.ignore(n, head)
	return nil
}

// ignore notes an object of a kind that is not read, once per kind.
func (d *decoder) ignore(n *yaml.Node, head header) {
	kind := clip(head.apiVersion) + " " + clip(head.kind)
	known := func(i ignored) bool { return i.kind == kind }
	if len(d.ignored) < maxWarnings && !slices.ContainsFunc(d.ignored, known) {
		d.ignored = append(d.ignored, ignored{kind: kind, line: n.Line})
	}
}

func (d *decoder) list(n *yaml.Node, implied header, depth int) *problem {
	if depth == maxLists {
		return problemf(n.Line, "lists are nested deeper than %d levels", maxLists)
	}
	items := field(n, "items")
	if items == nil || items.ShortTag() == "!!null" {
		return nil
	}
	items = resolve(items)
	if items.Kind != yaml.SequenceNode {
		return problemf(items.Line, "items is not a list")
	}
	for _, item := range items.Content {
		if item.Kind == yaml.AliasNode {
			// What it costs to read an element again is not bounded by the
			// size of the file.
			return problemf(item.Line, "an element of a list is an alias, which is not supported")
		}
		if p := d.value(item, implied, depth+1); p != nil {
			return p
		}
	}
	return nil
}

func (d *decoder) service(n *yaml.Node) *problem {
	var svc corev1.Service
	version, p := d.decode(n, &svc)
	if p != nil {
		return p
	}
	defaultService(&svc)
	value, used, refused := source.TranslateService(&svc, d.policy)
	d.objects = append(d.objects, &object{
		id: id{source.KindService, keyOf(svc.Namespace, svc.Name)}, line: n.Line, version: version,
		service: value, used: used, refused: refused,
	})
	return nil
}

func (d *decoder) endpointSlice(n *yaml.Node) *problem {
	var slice discoveryv1.EndpointSlice
	version, p := d.decode(n, &slice)
	if p != nil {
		return p
	}
	defaultEndpointSlice(&slice)
	value, used, refused := source.TranslateEndpointSlice(&slice)
	d.objects = append(d.objects, &object{
		id: id{source.KindEndpointSlice, keyOf(slice.Namespace, slice.Name)}, line: n.Line, version: version,
		slice: value, used: used, refused: refused,
	})
	return nil
}

func (d *decoder) serviceCIDR(n *yaml.Node) *problem {
	var cidr networkingv1.ServiceCIDR
	version, p := d.decode(n, &cidr)
	if p != nil {
		return p
	}
	value, used, refused := source.TranslateServiceCIDR(&cidr)
	d.objects = append(d.objects, &object{
		id: id{source.KindServiceCIDR, keyOf("", cidr.Name)}, line: n.Line, version: version,
		serviceCIDR: value, used: used, refused: refused,
	})
	return nil
}

func (d *decoder) pod(n *yaml.Node) *problem {
	var pod corev1.Pod
	version, p := d.decode(n, &pod)
	if p != nil {
		return p
	}
	defaultPod(&pod, d.nodeName)
	d.warnZeroPorts(n)
	if pod.Spec.NodeName != d.nodeName {
		return nil
	}
	value, used, refused := source.TranslatePod(&pod, d.nodeName)
	if !used && len(refused) == 0 && hasHostPorts(&pod) && len(d.warnings) < maxWarnings {
		d.warnings = append(d.warnings, warning{line: n.Line, text: "the pod has host ports and no address to lead them to; write it to status.podIPs"})
	}
	d.objects = append(d.objects, &object{
		id: id{source.KindPod, keyOf(pod.Namespace, pod.Name)}, line: n.Line, version: version,
		pod: value, used: used, refused: refused,
	})
	return nil
}

// hasHostPorts tells whether a pod has host ports that lack but an address.
func hasHostPorts(pod *corev1.Pod) bool {
	return !pod.Spec.HostNetwork && len(pod.Status.PodIPs) == 0 && pod.Status.PodIP == "" &&
		pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed &&
		slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
			return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.HostPort != 0 })
		})
}

// warnZeroPorts warns of host ports that are 0, which else mean that there is none:
// nobody writes that who does not want one.
func (d *decoder) warnZeroPorts(pod *yaml.Node) {
	spec := at(pod, "spec")
	for _, kind := range []string{"initContainers", "containers"} {
		for _, container := range elements(at(spec, kind)) {
			for _, port := range elements(at(container, "ports")) {
				if n := at(port, "hostPort"); n != nil && n.Value == "0" && len(d.warnings) < maxWarnings {
					d.warnings = append(d.warnings, warning{line: n.Line, text: "hostPort 0 is not a port number (1 to 65535), the container has none"})
				}
			}
		}
	}
}

// at returns a field of an object, nil where there is none.
func at(n *yaml.Node, name string) *yaml.Node {
	if n == nil {
		return nil
	}
	if n = resolve(n); n.Kind != yaml.MappingNode {
		return nil
	}
	if n = field(n, name); n == nil {
		return nil
	}
	return resolve(n)
}

// elements returns those of a list, none where it is none.
func elements(n *yaml.Node) []*yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

func (d *decoder) node(n *yaml.Node) *problem {
	var node corev1.Node
	version, p := d.decode(n, &node)
	if p != nil || node.Name != d.nodeName {
		return p
	}
	value, used, refused := source.TranslateNode(&node)
	d.objects = append(d.objects, &object{
		id: id{source.KindNode, keyOf("", node.Name)}, line: n.Line, version: version,
		node: value, used: used, refused: refused,
	})
	return nil
}

// decode fills into from n and returns what tells this version of the object
// from others. Unknown fields are warnings.
func (d *decoder) decode(n *yaml.Node, into any) (version string, p *problem) {
	text, marks, p := encode(n, d.expansion)
	if p != nil {
		return "", p
	}
	unknown, err := json.UnmarshalStrict(text, into, json.DisallowUnknownFields)
	if err != nil {
		return "", decodeProblem(err, n, text, marks)
	}
	for _, u := range unknown {
		if len(d.warnings) == maxWarnings {
			break
		}
		line := n.Line
		if at, ok := u.(json.FieldError); ok {
			line = lineOfPath(n, at.FieldPath())
		}
		d.warnings = append(d.warnings, warning{line: line, text: clip(oneLine(u.Error()))})
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8]), nil
}

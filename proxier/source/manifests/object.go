// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// id identifies an object in a directory.
type id struct {
	kind string
	key  model.ObjectKey
}

// keyOf returns an object's key. The strings may be any text from a file.
func keyOf(namespace, name string) model.ObjectKey {
	return model.ObjectKey{Namespace: namespace, Name: name}
}

// object is one version of an object in a file. It is immutable.
type object struct {
	id
	// line counts from the start of the document.
	line int
	// version tells versions of the object apart.
	version string
	// One of these holds what the object means, none where there is nothing
	// to program for it.
	service     *model.Service
	slice       *model.EndpointSlice
	serviceCIDR *model.ServiceCIDR
	pod         *model.Pod
	node        *model.Node

	used    bool
	refused []source.Refusal
}

// same reports whether two objects of one id mean the same; nil stands for no
// object.
func same(a, b *object) bool {
	if a == b {
		return true
	}
	none := &object{}
	if a == nil {
		a = none
	}
	if b == nil {
		b = none
	}
	return source.SameService(a.service, b.service) &&
		source.SameEndpointSlice(a.slice, b.slice) &&
		source.SameServiceCIDR(a.serviceCIDR, b.serviceCIDR) &&
		source.SamePod(a.pod, b.pod) &&
		source.SameNode(a.node, b.node)
}

// put adds what has become of an object to a step; nil means that it is gone.
func put(c *model.Changes, id id, o *object) {
	if o == nil {
		o = &object{}
	}
	switch id.kind {
	case source.KindService:
		if c.Services == nil {
			c.Services = map[model.ObjectKey]*model.Service{}
		}
		c.Services[id.key] = o.service
	case source.KindEndpointSlice:
		if c.EndpointSlices == nil {
			c.EndpointSlices = map[model.ObjectKey]*model.EndpointSlice{}
		}
		c.EndpointSlices[id.key] = o.slice
	case source.KindServiceCIDR:
		if c.ServiceCIDRs == nil {
			c.ServiceCIDRs = map[model.ObjectKey]*model.ServiceCIDR{}
		}
		c.ServiceCIDRs[id.key] = o.serviceCIDR
	case source.KindPod:
		if c.Pods == nil {
			c.Pods = map[model.ObjectKey]*model.Pod{}
		}
		c.Pods[id.key] = o.pod
	case source.KindNode:
		node := o.node
		if node == nil {
			// Here nobody has to write a Node, so its absence says nothing of
			// the node, as it would in an API server.
			node = &model.Node{Name: id.key.Name}
		}
		c.Node = &model.NodeChange{Node: node}
	}
}

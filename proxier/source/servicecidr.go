// SPDX-License-Identifier: Apache-2.0

package source

import (
	networkingv1 "k8s.io/api/networking/v1"

	"fairlead/proxier/model"
)

// TranslateServiceCIDR returns the ServiceCIDR as the model has it. ok is false
// where its name is refused. One that is being deleted is like any other: the
// API server keeps it for as long as cluster IPs are in it.
func TranslateServiceCIDR(cidr *networkingv1.ServiceCIDR) (c *model.ServiceCIDR, ok bool, refused []Refusal) {
	r := newRefusals(KindServiceCIDR, "", cidr.Name)
	if !isSubdomain(cidr.Name) {
		r.add("metadata.name", cidr.Name, reasonSubdomain)
		return nil, false, r.list
	}
	c = &model.ServiceCIDR{
		Key:   model.ObjectKey{Name: cidr.Name},
		CIDRs: prefixList("spec.cidrs", cidr.Spec.CIDRs, maxServiceCIDRs, r),
	}
	return c, true, r.list
}

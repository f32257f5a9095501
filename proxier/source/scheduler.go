// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

// AnnotationScheduler is the annotation of a Service that names an IPVS scheduler
// for it, and after commas flags as ipvsadm names them: "lc", "mh,mh-port".
const AnnotationScheduler = "fairlead.io/ipvs-scheduler"

// schedulers are the kernel's (net/netfilter/ipvs).
var schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"}

// ParseScheduler reads an IPVS scheduler and its flags. An empty text leaves the
// choice to the mode.
func ParseScheduler(text string) (model.Scheduler, error) {
	name, flags, _ := strings.Cut(text, ",")
	s := model.Scheduler{Name: name}
	if text == "" {
		return s, nil
	}
	if !slices.Contains(schedulers, name) {
		return model.Scheduler{}, fmt.Errorf("is not one of %s", strings.Join(schedulers, ", "))
	}
	for flag := range strings.SplitSeq(flags, ",") {
		switch {
		case flag == "":
		case (name == "mh" || name == "sh") && flag == name+"-fallback":
			s.Fallback = true
		case (name == "mh" || name == "sh") && flag == name+"-port":
			s.Port = true
		default:
			return model.Scheduler{}, fmt.Errorf("has a flag %q that %s does not have", flag, name)
		}
	}
	return s, nil
}

// scheduler returns the scheduler that a Service names.
func scheduler(svc *corev1.Service, r *refusals) model.Scheduler {
	value := svc.Annotations[AnnotationScheduler]
	s, err := ParseScheduler(value)
	if err != nil {
		r.add("metadata.annotations["+AnnotationScheduler+"]", value, err.Error()+"; the default is used")
	}
	return s
}

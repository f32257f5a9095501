// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

// AnnotationBalancing is the annotation of a Service that says how its endpoints are
// chosen: "random", "maglev" or "maglev-port".
const AnnotationBalancing = "fairlead.io/load-balancing"

// ParseBalancing reads how endpoints are chosen. An empty text leaves it to the mode.
func ParseBalancing(text string) (model.Balancing, error) {
	b := model.Balancing(text)
	if text != "" && !slices.Contains([]model.Balancing{model.Random, model.Maglev, model.MaglevPort}, b) {
		return "", fmt.Errorf("is not one of %s, %s, %s", model.Random, model.Maglev, model.MaglevPort)
	}
	return b, nil
}

// balancing returns how a Service says that endpoints are chosen.
func balancing(svc *corev1.Service, r *refusals) model.Balancing {
	value := svc.Annotations[AnnotationBalancing]
	b, err := ParseBalancing(value)
	if err != nil {
		r.add("metadata.annotations["+AnnotationBalancing+"]", value, err.Error()+"; the default is used")
	}
	return b
}

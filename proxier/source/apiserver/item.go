// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// item is what the informers' caches hold in the place of an API object: its
// identity and what it means. The value is the very one that the sink gets, so
// a cluster's objects are in memory once and without the parts that nobody
// reads.
type item[T any] struct {
	key     model.ObjectKey
	version string
	// value is nil where there is nothing to program for the object.
	value *T
	// trouble is nil where nothing is refused.
	trouble *trouble
}

// trouble is what is refused of an object, and which object of that name it is.
type trouble struct {
	uid     types.UID
	refused []source.Refusal
}

// GetObjectMeta returns what the caches need to know of an object.
func (i *item[T]) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: i.key.Namespace, Name: i.key.Name, ResourceVersion: i.version}
}

// object is a pointer to an API object of type O.
type object[O any] interface {
	*O
	metav1.Object
}

// transform returns a function that turns API objects into items, as they
// arrive. It leaves items as they are: an informer may pass them once more.
func transform[T any, O any, P object[O]](translate func(P) (*T, bool, []source.Refusal)) func(any) (any, error) {
	return func(in any) (any, error) {
		switch o := in.(type) {
		case *item[T]:
			return o, nil
		case P:
			value, _, refused := translate(o)
			i := &item[T]{
				key:     source.KeyOf(o.GetNamespace(), o.GetName()),
				version: o.GetResourceVersion(),
				value:   value,
			}
			if len(refused) > 0 {
				i.trouble = &trouble{uid: o.GetUID(), refused: refused}
			}
			return i, nil
		}
		return nil, fmt.Errorf("translate object: unexpected type %T", in)
	}
}
